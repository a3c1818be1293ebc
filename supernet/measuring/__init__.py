"""Latency, memory and zero-cost scores of networks."""

from supernet.measuring.latency import (
    TIMED_RUNS,
    Latency,
    latency_of,
    median_interval,
    time_parts,
    time_runs,
)
from supernet.measuring.latency_table import LatencyTable, Part, measure_table
from supernet.measuring.memory import peak_memory_mib
from supernet.measuring.proxies import PROXIES, proxy_scores

__all__ = [
    "PROXIES",
    "TIMED_RUNS",
    "Latency",
    "LatencyTable",
    "Part",
    "latency_of",
    "measure_table",
    "median_interval",
    "peak_memory_mib",
    "proxy_scores",
    "time_parts",
    "time_runs",
]
