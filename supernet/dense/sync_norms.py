"""Batch norms that see the shards of all devices (SyncBN in the papers), on several GPUs."""

from __future__ import annotations

from torch import Tensor, nn

from supernet.mixers import BatchNorm, CentredBatchNorm


class SyncedMapNorm(nn.SyncBatchNorm):
    """Synchronised batch normalisation of channels-last maps (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over the batches of all devices."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SyncedCentredNorm(SyncedMapNorm):
    """The same behind centring calibration (`supernet.mixers.norms.CentredBatchNorm`)."""

    center_weight: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """Centre every image by a share of its own mean, then normalise."""
        return super().forward(x + self.center_weight * x.mean((1, 2), keepdim=True))


def sync_batch_norms(network: nn.Module) -> None:
    """Replace every batch norm in place; parameters and statistics are the same tensors."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _synced(child))


def _synced(norm: nn.BatchNorm2d) -> nn.SyncBatchNorm:
    kinds: dict[type, type[nn.SyncBatchNorm]] = {
        CentredBatchNorm: SyncedCentredNorm,
        BatchNorm: SyncedMapNorm,
    }
    found = kinds.get(type(norm), nn.SyncBatchNorm)(norm.num_features, norm.eps, norm.momentum or 0)
    for key, parameter in norm.named_parameters():
        setattr(found, key, parameter)
    for key, buffer in norm.named_buffers():
        setattr(found, key, buffer)
    return found.train(norm.training)
