"""Detection and segmentation: backbones with norms, heads, losses, training, judging."""

__all__ = []
