"""Neighbourhood operators on channels-last maps: what the local token mixers are made of."""

from __future__ import annotations

from supernet.kernels.neighborhood import aggregate, depthwise_conv, neighborhood_logits, skew

__all__ = ["aggregate", "depthwise_conv", "neighborhood_logits", "skew"]
