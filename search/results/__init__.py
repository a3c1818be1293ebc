"""What trials say: candidates, fronts among them, and how sure they are."""
