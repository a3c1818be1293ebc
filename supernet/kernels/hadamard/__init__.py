"""Hadamard logits: a grouped convolution of the product of queries and keys."""
