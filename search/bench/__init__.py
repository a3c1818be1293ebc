"""Searchers side by side on problems whose answers are known."""

from search.bench.searchers import print_table

__all__ = [
    "print_table",
]
