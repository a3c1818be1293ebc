"""Neighbourhood attention with any subset of the four terms."""
