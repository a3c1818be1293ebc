"""The phases of `search run`, one a module; `search.run` says in which order."""

__all__ = []
