"""What surrounds the blocks: stems, what joins two stages, position encodings, VOLO's class token.

`searchspace.families` says which family has what. Maps are channels-last, (B, H, W, C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.mixers import ChannelBlocks, DepthwiseConv2d, new_linear
from supernet.network.blocks import Mlp


class PatchEmbed(nn.Module):
    """P x P patches that do not overlap, projected and normed: images to maps (B, H, W, C)."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images of shape (B, in_chans, S, S)."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class ConvStem(nn.Module):
    """VOLO's stem: 7x7 with stride 2 and two 3x3 convolutions, then a patch convolution."""

    def __init__(self, in_chans: int, stem_dim: int, dim: int, patch_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, size, stride in ((in_chans, 7, 2), (stem_dim, 3, 1), (stem_dim, 3, 1)):
            conv = nn.Conv2d(inputs, stem_dim, size, stride, padding=size // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(stem_dim), nn.ReLU()]
        self.conv = nn.Sequential(*layers)
        self.proj = nn.Conv2d(stem_dim, dim, patch_size // 2, stride=patch_size // 2)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images of shape (B, in_chans, S, S) as maps (B, S / P, S / P, C)."""
        return self.proj(self.conv(images)).permute(0, 2, 3, 1)


class PatchMerging(nn.Module):
    """Halve a map: 2 x 2 tokens joined, normed, projected (Swin); odd sides are zero-padded."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = new_linear(4 * dim, out_dim, bias=False)
        # The joined tokens (see `supernet.mixers.width`).
        tokens = (dim,) * 4
        self.channel_blocks: ChannelBlocks = {
            "norm.weight": (0, tokens),
            "norm.bias": (0, tokens),
            "reduction.weight": (1, tokens),
        }

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, dim) to (B, ceil(H/2), ceil(W/2), out_dim)."""
        _, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # Published order: (0, 0), (1, 0), (0, 1), (1, 1).
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.flatten(3)))


class PatchConv(nn.Module):
    """Halve a map with a 2 x 2 convolution: between the stages of VOLO and Twins.

    Args:
        dim: Channels of the map.
        out_dim: Channels of the halved map.
        norm: Twins norms the result.
        embedded_size: VOLO adds a position embedding, for a halved map of this side; it is
            interpolated for maps of other sizes. 0 for none.
    """

    def __init__(self, dim: int, out_dim: int, *, norm: bool, embedded_size: int = 0) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 2, stride=2)
        self.norm = nn.LayerNorm(out_dim) if norm else None
        self.pos_embed = None
        if embedded_size:
            embedding = torch.empty(embedded_size, embedded_size, out_dim)
            self.pos_embed = nn.Parameter(nn.init.trunc_normal_(embedding, std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, dim) to (B, H // 2, W // 2, out_dim)."""
        x = self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.norm is not None:
            x = self.norm(x)
        if self.pos_embed is not None:
            x = x + resize_embedding(self.pos_embed, (x.shape[1], x.shape[2]))
        return x


def resize_embedding(embedding: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate an embedding of positions (H, W, C) to another map (bicubic, as timm does)."""
    if embedding.shape[:2] == size:
        return embedding
    channels_first = embedding.permute(2, 0, 1)[None]
    resized = F.interpolate(channels_first, size, mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0)


class PositionEncoding(nn.Module):
    """Twins' conditional position encoding: ``x + depthwise conv 3x3 of x`` (PEG, Chu et al. 2021).

    It stands behind the first block of every stage.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = DepthwiseConv2d(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Encode positions in a map (B, H, W, C)."""
        return x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ClassBlock(nn.Module):
    """Class attention and an MLP that change only the class token (CaiT, as in VOLO).

    Args:
        dim: Channels.
        mlp_ratio: Hidden channels of the largest MLP over ``dim``.
        norm_eps: Added to the variance by layer norms.
    """

    def __init__(self, dim: int, *, mlp_ratio: float, norm_eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.kv = new_linear(dim, 2 * dim, bias=False)
        self.q = new_linear(dim, dim, bias=False)
        self.proj = new_linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def select(self, mlp_ratio: float) -> dict[str, Tensor]:
        """Return the state of the block that has only this MLP."""
        found = {
            name: value
            for name, value in self.state_dict(keep_vars=True).items()
            if not name.startswith("mlp.")
        }
        mlp = self.mlp.select(int(self.dim * mlp_ratio))
        return found | {f"mlp.{name}": value for name, value in mlp.items()}

    def forward(self, x: Tensor, num_heads: int, mlp_ratio: float) -> Tensor:
        """Update the first token of (B, 1 + N, C) from all of them."""
        normed = self.norm1(x)
        key, value = self.kv(normed).unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.q(normed[:, :1]).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value)  # (B, heads, 1, D)
        token = x[:, :1] + self.proj(attended.transpose(1, 2).flatten(2))
        token = token + self.mlp(self.norm2(token), int(self.dim * mlp_ratio))
        return torch.cat([token, x[:, 1:]], 1)
