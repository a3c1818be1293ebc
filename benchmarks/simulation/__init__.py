"""A cluster of hundreds of devices in virtual time; see `benchmarks/simulate_cluster.py`."""
