"""How much the choices of a supernet's block share: a setting of the supernet, not of networks.

An architecture's own network is the same for all of these; only what its weights have in common
with those of other architectures differs.
"""

from __future__ import annotations

from dataclasses import dataclass

PROJECTIONS = ("unshared", "shared")
KERNELS = ("centred", "transformed")


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSharing:
    """The sharing settings of a supernet.

    Attributes:
        projections: ``shared``: the mixers of a block have one value and one output projection
            (`supernet.mixers.projections`); ``unshared``: each kind has its own.
        kernels: ``centred``: a smaller depth-wise kernel is the centre of the largest;
            ``transformed``: a learned transform of it (`supernet.mixers.kernel_transforms`).
    """

    projections: str = "unshared"
    kernels: str = "centred"

    def __post_init__(self) -> None:
        if self.projections not in PROJECTIONS:
            raise ValueError(
                f"The projections of a block's mixers are {' or '.join(PROJECTIONS)}, "
                f"got {self.projections!r}. Write one of these."
            )
        if self.kernels not in KERNELS:
            raise ValueError(
                f"Smaller kernels are {' or '.join(KERNELS)}, got {self.kernels!r}. Write one of "
                "these."
            )
