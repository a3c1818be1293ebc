"""What a run ends with: the page, the pictures, the words."""
