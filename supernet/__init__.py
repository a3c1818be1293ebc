"""Torch: mixers, blocks, the supernet, training. After importing it timm knows our networks."""

from supernet.registration import register_with_timm

register_with_timm()
