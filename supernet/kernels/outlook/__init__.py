"""Outlook aggregation: tokens of a coarser grid turn K x K values into K x K outputs."""
