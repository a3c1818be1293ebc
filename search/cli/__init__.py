"""The command line: options, commands, and nothing heavy until one runs."""

__all__ = []
