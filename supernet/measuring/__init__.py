"""Latency, memory and zero-cost scores of networks."""

from supernet.measuring.latency import TIMED_RUNS, device_name, time_calls, time_parts, time_runs
from supernet.measuring.latency_table import measure_table
from supernet.measuring.memory import peak_memory_mib
from supernet.measuring.part_modules import modules_of_parts
from supernet.measuring.proxies import PROXIES, proxy_scores
from supernet.measuring.running import clock_of, torch_runner

__all__ = [
    "PROXIES",
    "TIMED_RUNS",
    "clock_of",
    "device_name",
    "measure_table",
    "modules_of_parts",
    "peak_memory_mib",
    "proxy_scores",
    "time_calls",
    "time_parts",
    "time_runs",
    "torch_runner",
]
