"""What is handed out next, within the budget. No Ray, no torch."""
