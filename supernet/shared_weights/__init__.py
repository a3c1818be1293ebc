"""Training the weights that all architectures of a space share."""
