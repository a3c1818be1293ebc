"""The folder of a run: its settings, its files, and how a user names what is in it."""
