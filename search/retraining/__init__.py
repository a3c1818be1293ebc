"""Chosen networks through the full recipe, and what is done with them then."""

__all__ = []
