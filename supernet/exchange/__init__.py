"""Networks from and to others: timm, published checkpoints, files that run without us."""

__all__ = []
