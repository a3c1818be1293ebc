"""Latency, memory and zero-cost scores of networks."""
