"""``search transfer``: networks as backbones of detectors and segmenters, trained and judged."""

__all__ = []
