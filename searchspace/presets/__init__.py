"""The networks of the papers by name, e.g. ``preset("elsa_swin_t")``.

A preset is exactly the published network, for 1000 classes. Sources: Liu et al. 2021 (Swin), Yuan
et al. 2021 (VOLO), Chu et al. 2021 (Twins-SVT), Han et al. 2022 (depth-wise convolutions,
ablations), Zhou et al. 2023 (Net1 to Net7, ELSA). Suffixes name variants: ``_384`` another
resolution, ``_k12`` a kernel size, ``_w7`` a window size, ``_h1`` channels in each head, ``_se``
squeeze-and-excitation, ``_bn``, ``_ln`` and ``_ccbn`` norms.
"""

from __future__ import annotations

import difflib

from searchspace.architecture import Architecture
from searchspace.presets.ablations import ablation_presets
from searchspace.presets.preset import Preset
from searchspace.presets.swin import swin_presets
from searchspace.presets.twins import twins_presets
from searchspace.presets.volo import volo_presets

__all__ = ["PRESETS", "Preset", "preset", "preset_about"]

PRESETS: dict[str, Preset] = {
    **swin_presets(),
    **ablation_presets(),
    **volo_presets(),
    **twins_presets(),
}


def preset(name: str) -> Architecture:
    """Return a published network.

    Raises:
        ValueError: If no preset has that name.
    """
    return _find(name).architecture


def preset_about(name: str) -> str:
    """Return the line that says which network of which paper the preset is.

    Raises:
        ValueError: If no preset has that name.
    """
    return _find(name).about


def _find(name: str) -> Preset:
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=3)
        guess = f"Did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"Unknown preset {name!r}. {guess}List them with `search presets`.")
    return PRESETS[name]
