"""Faults on a real Ray cluster of several nodes; see `benchmarks/bench_faults.py`."""
