"""Makes ONNX files of networks and their parts, for `search.deployed.kit`. Needs torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search.deployed.kit import CALL, Kit, Whole
from search.deployed.quantising import quantise
from searchspace.architecture import Architecture
from searchspace.deployment import Deployment
from searchspace.latency_table import Part, covering, macro_of, macro_of_space, parts_of
from searchspace.space import SearchSpace
from supernet.exchange.export import traced, write_onnx
from supernet.measuring import modules_of_parts
from supernet.network import build_subnet

# Whole networks that a table's sums are fitted to.
FITTED = 8
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a table is measured of.

    Attributes:
        macro: What all networks share; see `searchspace.latency_table.macro_of_space`.
        networks: That have all parts between them.
        fitted: Whole networks that the sums are fitted to.
        checked: Whole networks that they are compared with.
    """

    macro: Mapping[str, Any]
    networks: Sequence[Architecture]
    fitted: Sequence[Architecture]
    checked: Sequence[Architecture]

    @property
    def parts(self) -> list[Part]:
        """The parts, in the order in which they appear."""
        return list(dict.fromkeys(part for one in self.networks for part in parts_of(one)))

    @property
    def groups(self) -> dict[Part, list[Part]]:
        """The parts, those that take the same time together, by the first of them."""
        found: dict[Part, list[Part]] = {}
        for part in self.parts:
            found.setdefault(representative(part), []).append(part)
        return {same[0]: same for same in found.values()}

    @classmethod
    def of(cls, space: SearchSpace, num_checked: int, rng: random.Random) -> Wanted:
        """Want every part of a space, and random whole networks."""
        networks = covering(space, rng)
        fitted = [space.sample(rng) for _ in range(FITTED)]
        checked = [space.sample(rng) for _ in range(num_checked)]
        macro = macro_of_space(space)
        return cls(macro=macro, networks=networks, fitted=fitted, checked=checked)


def export_kit(
    folder: Path,
    wanted: Wanted,
    deployment: Deployment,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Kit:
    """Write the files of a table's parts and whole networks, and ``kit.json`` as the last.

    Args:
        folder: To write to; it is there.
        wanted: What the table is measured of.
        deployment: The precision and batch.
        progress: Called with the files that are written, and their number.
    """
    total = len(wanted.groups) + len(wanted.fitted) + len(wanted.checked)
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    write_file(folder / CALL, nn.Identity(), torch.zeros(deployment.batch, 4), deployment)
    parts = _export_parts(folder, wanted, deployment, tell)
    wholes = [
        Whole(file=f"network-{number:04}.onnx", name=str(number), architecture=one, is_fitted=fit)
        for number, (one, fit) in enumerate(
            [*((one, True) for one in wanted.fitted), *((one, False) for one in wanted.checked)]
        )
    ]
    export_wholes(folder, wholes, deployment, tell)
    kit = Kit(deployment=deployment, macro=wanted.macro, parts=parts, wholes=wholes)
    kit.save(folder)
    return kit


def export_wholes(
    folder: Path, wholes: Iterable[Whole], deployment: Deployment, tell: Callable[[], None]
) -> None:
    """Write the file of each whole network."""
    for one in wholes:
        network = build_subnet(one.architecture)
        write_file(folder / one.file, network, image_of(one.architecture, deployment), deployment)
        tell()


def _export_parts(
    folder: Path, wanted: Wanted, deployment: Deployment, tell: Callable[[], None]
) -> dict[Part, str]:
    """Write the file of each part; return which part has which."""
    groups, files = wanted.groups, dict[Part, str]()
    found = modules_of_parts(wanted.networks, groups, batch=deployment.batch, device=CPU)
    for number, (part, module, example) in enumerate(found):
        name = f"part-{number:05}.onnx"
        write_file(folder / name, module, example, deployment)
        files |= dict.fromkeys(groups[part], name)
        tell()
    return files


def representative(part: Part) -> Part:
    """Name the part of a block as the even ones are: only windows are shifted in odd blocks."""
    if part.mixer is None or hasattr(part.mixer, "window_size"):
        return part
    return replace(part, name=part.name.replace(" odd", " even"))


def image_of(architecture: Architecture, deployment: Deployment) -> Tensor:
    """Make a batch of noise of a network's size."""
    size = architecture.img_size
    return torch.randn(deployment.batch, architecture.in_chans, size, size)


def write_file(
    path: Path,
    network: nn.Module,
    example: Tensor,
    deployment: Deployment,
    *,
    calibration: Sequence[Tensor] | None = None,
) -> None:
    """Write a module as ONNX for inputs of one shape, quantised if the precision is int8.

    Args:
        path: To write.
        network: On the CPU.
        example: An input.
        deployment: The precision.
        calibration: Inputs to find scales on, each of the example's shape; None takes noise.
    """
    plain = path.with_suffix(".fp32.onnx") if deployment.precision == "int8" else path
    write_onnx(traced(network, example, batch_is_free=False), plain, {})
    if plain != path:
        images = None if calibration is None else [one.numpy() for one in calibration]
        quantise(plain, path, images)
        plain.unlink()


def export_front(
    folder: Path,
    networks: Mapping[int, Architecture],
    expected: Mapping[int, float | None],
    deployment: Deployment,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Kit:
    """Write the files of a run's networks, and ``kit.json`` as the last.

    Args:
        folder: To write to; it is there.
        networks: By their ids.
        expected: Milliseconds that the run says of each.
        deployment: The precision and batch.
        progress: Called with the files that are written, and their number.
    """
    wholes = [
        Whole(
            file=f"network-{number}.onnx",
            name=str(number),
            architecture=one,
            expected_ms=expected[number],
        )
        for number, one in networks.items()
    ]
    write_file(folder / CALL, nn.Identity(), torch.zeros(deployment.batch, 4), deployment)
    written = 0

    def tell() -> None:
        nonlocal written
        written += 1
        progress(written, len(wholes))

    export_wholes(folder, wholes, deployment, tell)
    first = next(iter(networks.values()))
    kit = Kit(deployment=deployment, macro=macro_of(first), parts={}, wholes=wholes)
    kit.save(folder)
    return kit
