"""Neighbours summed with filters: aggregation, logits, convolution, and their gradients."""
