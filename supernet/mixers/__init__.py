"""The mixers as torch modules: one class a kind, each holding all settings that a block offers.

Every class has the same shape: ``Class(options, place=)``, ``forward(x, mixer)`` on
maps (B, H, W, C), and ``select(mixer)``, the state dict of the same class built for that one
setting. A standalone network is the case of one option, so there is one implementation.
"""

from __future__ import annotations

from torch import nn

from supernet.mixers.decoupled_dynamic_filter import DecoupledDynamicFilterMixer
from supernet.mixers.depthwise import DepthwiseConv2d, DepthwiseConvMixer
from supernet.mixers.dynamic_depthwise import DynamicDepthwiseConvMixer
from supernet.mixers.elsa import ElsaMixer
from supernet.mixers.global_attention import GlobalAttentionMixer
from supernet.mixers.inhomogeneous import InhomogeneousDepthwiseConvMixer, InvolutionMixer
from supernet.mixers.local_mlp import LocalMlpMixer
from supernet.mixers.neighborhood_attention import NeighborhoodAttentionMixer
from supernet.mixers.no_mixer import NothingMixed
from supernet.mixers.norms import BatchNorm, CentredBatchNorm, build_norm
from supernet.mixers.outlook_attention import OutlookAttentionMixer
from supernet.mixers.projections import share_projections
from supernet.mixers.sharing import Place, new_linear, new_table, state_of
from supernet.mixers.weight_sharing import WeightSharing
from supernet.mixers.width import ChannelBlocks, NarrowPart
from supernet.mixers.window_attention import WindowAttentionMixer

MIXERS: dict[str, type[nn.Module]] = {
    "window_attention": WindowAttentionMixer,
    "neighborhood_attention": NeighborhoodAttentionMixer,
    "local_mlp": LocalMlpMixer,
    "depthwise_conv": DepthwiseConvMixer,
    "dynamic_depthwise_conv": DynamicDepthwiseConvMixer,
    "inhomogeneous_depthwise_conv": InhomogeneousDepthwiseConvMixer,
    "involution": InvolutionMixer,
    "decoupled_dynamic_filter": DecoupledDynamicFilterMixer,
    "outlook_attention": OutlookAttentionMixer,
    "elsa": ElsaMixer,
    "global_attention": GlobalAttentionMixer,
    "no_mixer": NothingMixed,
}

__all__ = [
    "MIXERS",
    "BatchNorm",
    "CentredBatchNorm",
    "ChannelBlocks",
    "DepthwiseConv2d",
    "NarrowPart",
    "Place",
    "WeightSharing",
    "build_norm",
    "new_linear",
    "new_table",
    "share_projections",
    "state_of",
]
