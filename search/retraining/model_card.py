"""What a retraining measured: as a value that is stored, and as the page beside the weights."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from configs.reading import typed
from search.results import wilson_interval
from search.terminal import visible
from searchspace.architecture import Architecture, describe
from searchspace.quantity import counted
from supernet.recipes import Recipe
from supernet.training import EMA_FILE, WEIGHTS_FILE, Accuracy


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainResult:
    """What a retraining measured, on the test split.

    Attributes:
        key: Of the architecture.
        data: Name of the images; ``data_fingerprint`` is a hash of them.
        mean: Of each channel in 0..1; what the network expects its images normalised by.
        std: Likewise.
        crop_pct: Share of the side of an image's central square that it expects to see; with the
            ``crop_mode`` squash of both sides of the image.
        start: ``fresh`` or ``inherited`` weights.
        teacher: Whom it learnt from; empty for nobody.
        search_teacher: Whom the trainings of the search that found it learnt from; likewise.
        num_unlabelled: Images without classes that it learnt on as well, from its teacher.
        seconds: Of training, over all attempts, without evaluation.
        raw: Accuracy of the last step's weights.
        ema: Accuracy of the averaged weights, where the recipe has them.
        identity: Hash of all that decided the training, but for its seed.
        crop_mode: As timm's: ``squash`` where images were given another shape.
        sha256: Of the files of weights, by their names.
    """

    key: str
    params: int
    macs: int
    recipe: str
    epochs: int
    seed: int
    start: str
    data: str
    data_fingerprint: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    num_train_images: int
    device: str
    seconds: float
    raw: Accuracy
    ema: Accuracy | None
    teacher: str = ""
    search_teacher: str = ""
    num_unlabelled: int = 0
    identity: str = ""
    crop_mode: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(0 < one < math.inf for one in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} normalise no images")

    @property
    def accuracy(self) -> Accuracy:
        """The one that counts: of the averaged weights if the recipe has them."""
        return self.raw if self.ema is None else self.ema

    def to_dict(self) -> dict[str, Any]:
        """Describe the result with JSON values; `from_dict` inverts it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RetrainResult:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: If a value is missing or of another kind.
        """
        return typed(cls, data)


def model_card(architecture: Architecture, recipe: Recipe, result: RetrainResult) -> str:
    """Write the page (Markdown) that goes with the weights."""
    rows = [("last step's weights", WEIGHTS_FILE, result.raw)]
    if result.ema is not None:
        rows.append(("averaged weights (these count)", EMA_FILE, result.ema))
    accuracies = "\n".join(
        f"| {what} | `{file}` | {_percent(found.correct, found.total)} "
        f"| {_percent(found.correct_top5, found.total)} |"
        for what, file, found in rows
    )
    taught = f", taught by {_code(result.teacher)}" if result.teacher else ""
    if result.num_unlabelled:
        taught += f", also on {result.num_unlabelled:,} images without classes"
    epochs = counted(result.epochs, "epoch")
    mentor, found_by = result.search_teacher, ""
    if mentor:
        found_by = f"| found by | a search whose trainings were taught by {_code(mentor)} |\n"
    seen = "both sides" if result.crop_mode == "squash" else "the side of the central square"
    return f"""# {describe(architecture)}

An image classifier that was searched and trained by mixer-search; architecture `{result.key}`.

| weights | file | top-1 | top-5 |
|---|---|---|---|
{accuracies}

On the {result.raw.total:,} test images of {_code(result.data)}, which were read once, after
training; 95 % intervals by Wilson's score. One training with seed {result.seed}: others differ.

| | |
|---|---|
| parameters | {result.params:,} |
| multiply-accumulates of an image | {result.macs:,} |
| image | {architecture.img_size} x {architecture.img_size}, {architecture.in_chans} channels |
| classes | {_classes(result.class_names)} |
{found_by}| trained on | {result.num_train_images:,} images, {_text(result.start)} weights{taught} |
| recipe | {_code(result.recipe)} ({_text(recipe.about)}), in full in `recipe.yaml` |
| training | {epochs} in {result.seconds:,.0f} seconds on {_text(result.device)} |

To load it, with mixer-search installed and this folder as the working directory:

```python
import json
from pathlib import Path

from safetensors.torch import load_model
from searchspace.architecture import Architecture
from supernet.network.supernet import build_subnet

architecture = Architecture.from_dict(json.loads(Path("architecture.json").read_text()))
network = build_subnet(architecture).eval()
load_model(network, "{rows[-1][1]}")
```

Or as one of timm's networks:

```
import timm, supernet
network = timm.create_model(
    "mixer_search", architecture="architecture.json", checkpoint_path="{rows[-1][1]}"
)
```

It takes RGB images, turned as their EXIF orientation says, scaled ({recipe.eval_interpolation})
so that {result.crop_pct:.4g} of {seen} is seen. Their values are those of
0..1, less the mean {_numbers(result.mean)}, divided by the deviation {_numbers(result.std)}; their
shape is (batch, channels, height, width).
"""


def _percent(correct: int, total: int) -> str:
    low, high = wilson_interval(correct, total)
    return f"{100 * correct / total:.2f} % ({low:.2f} to {high:.2f})"


def _classes(names: tuple[str, ...], limit: int = 20) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return f"{len(names)}: {', '.join(map(_text, names[:limit]))}{more}"


def _text(words: str) -> str:
    """Write what a user named so that Markdown and HTML show it as it is, also in a table."""
    shown = html.escape(" ".join(visible(words).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", shown)


def _code(words: str) -> str:
    """Write what a user named as code, in more backticks than it has."""
    shown = " ".join(visible(words).split()).replace("|", "\\|")
    longest = max((len(ticks) for ticks in re.findall("`+", shown)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
