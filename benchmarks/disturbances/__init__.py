"""Trouble for runs and retrainings; see `benchmarks/trouble.py`."""
