"""Torch: mixers, blocks, the supernet, training. Importing it makes timm know our networks."""

from supernet.exchange.timm_models import register

register()
