"""Small changes of meaning in the program, and whether its tests notice them."""
