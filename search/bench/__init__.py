"""Searchers side by side on problems whose answers are known."""
