"""What runs on a device. No Ray."""
