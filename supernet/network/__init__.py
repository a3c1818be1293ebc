"""Blocks, stems and heads, the supernet, and extraction."""
