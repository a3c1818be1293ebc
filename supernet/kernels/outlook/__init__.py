"""Outlook aggregation: tokens of a coarser grid say what K x K outputs are of K x K values."""
