"""Which strategy finds the better front; see `benchmarks/compare_strategies.py`."""
