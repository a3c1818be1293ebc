"""A folder of ONNX files that stand for a space or a front, and what times them on a device.

``kit.json`` says what each file is. The folder is made where torch is (`search.deployed.exporting`)
and measured where the networks will run: there onnxruntime or OpenVINO and numpy are enough.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.files import reading
from configs.reading import MAX_JSON_BYTES, parse_json, read_text
from search.deployed.fitting import Times, fit_table
from search.deployed.sessions import open_network
from search.deployed.timing import Job, time_in_turn
from searchspace import durable
from searchspace.architecture import Architecture
from searchspace.clocks import clock_for
from searchspace.deployment import Deployment
from searchspace.latency_table import (
    Checked,
    LatencyTable,
    Part,
    check_macro,
    check_number,
    latency_of,
    parts_of,
    processor_name,
)

KIT = "kit.json"
CALL = "call.onnx"
REMEDY = "Write one with `search latency --export FOLDER`."


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """A whole network of a kit.

    Attributes:
        file: Its ONNX file, in the kit's folder.
        name: As a person knows it, e.g. its id in a run.
        architecture: The network.
        is_fitted: Whether the table's sums are fitted to it, or compared with it.
        expected_ms: What a run says of it, if the kit is a run's.
    """

    file: str
    name: str
    architecture: Architecture
    is_fitted: bool = False
    expected_ms: float | None = None

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Whole:
        """Read what `Kit.save` wrote of it.

        Raises:
            ValueError, KeyError, TypeError: If it is something else.
        """
        architecture = Architecture.from_dict(row["architecture"])
        found = cls(**{**row, "file": _inside(row["file"]), "architecture": architecture})
        if not isinstance(found.name, str) or not isinstance(found.is_fitted, bool):
            raise ValueError(f"{found.file} has no name, or it is not said whether it is fitted to")
        if found.expected_ms is not None:
            check_number(f"expected_ms of {found.file}", found.expected_ms, 0.0)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Kit:
    """What the files of a folder are.

    Attributes:
        deployment: The precision and batch of the files; the target may be another on the device.
        macro: What all networks share; see `searchspace.latency_table.macro_of`.
        parts: The file of each part; equal ones have one file.
        wholes: Whole networks.
    """

    deployment: Deployment
    macro: Mapping[str, Any]
    parts: Mapping[Part, str]
    wholes: Sequence[Whole]

    def save(self, folder: Path) -> None:
        """Write ``kit.json``."""
        described = {
            "deployment": dataclasses.asdict(self.deployment),
            "macro": self.macro,
            "parts": [{**part.to_dict(), "file": file} for part, file in self.parts.items()],
            "wholes": [
                {
                    **{n: getattr(one, n) for n in ("file", "name", "is_fitted", "expected_ms")},
                    "architecture": one.architecture.to_dict(),
                }
                for one in self.wholes
            ],
        }
        durable.write_text(folder / KIT, json.dumps(described, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Kit:
        """Read what `save` wrote.

        Raises:
            ValueError: If the folder is no kit, or a file is missing.
        """
        path = folder / KIT
        if not path.is_file():
            raise ValueError(f"{folder} has no {KIT}, so there is nothing to measure. {REMEDY}")
        text = read_text(path, limit=MAX_JSON_BYTES)
        with reading(path, "what is to be measured", remedy=REMEDY, errors=(KeyError, TypeError)):
            data: Any = parse_json(text)
            kit = cls(
                deployment=Deployment(**data["deployment"]),
                macro=data["macro"],
                parts={Part.from_dict(row): _inside(row["file"]) for row in data["parts"]},
                wholes=[Whole.from_dict(row) for row in data["wholes"]],
            )
            check_macro(kit.macro)
            kit.check_covered()
        missing = [file for file in kit.files if not (folder / file).is_file()]
        if missing:
            raise ValueError(
                f"{folder} misses {len(missing)} of the files that its {KIT} names, {missing[0]} "
                "first. Copy the whole folder again."
            )
        return kit

    def check_covered(self) -> None:
        """Refuse whole networks with parts that the kit has no files of.

        Raises:
            ValueError: Then.
        """
        for one in self.wholes if self.parts else ():
            missing = [part for part in parts_of(one.architecture) if part not in self.parts]
            if missing:
                raise ValueError(f"it has no file of '{missing[0]}', a part of {one.name}")

    @property
    def files(self) -> list[str]:
        """The files that are measured, each once."""
        names = [CALL, *self.parts.values(), *(one.file for one in self.wholes)]
        return list(dict.fromkeys(names))


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredKit:
    """What a device said of a kit.

    Attributes:
        table: Of the parts, if the kit has any.
        checked: Whole networks beside the table's prediction, or beside what the kit expects.
        names: Of these networks.
        where: The device, its threads and the runtime.
    """

    table: LatencyTable | None
    checked: list[Checked]
    names: list[str]
    where: str


def measure_kit(
    folder: Path,
    kit: Kit,
    *,
    target: str,
    threads: int,
    rng: random.Random,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MeasuredKit:
    """Time the files of a kit on this machine.

    Args:
        folder: Of the files.
        kit: What they are.
        target: What runs them.
        threads: Of a CPU.
        rng: For the order.
        progress: Called with the files that were timed and their number, over all passes.

    Raises:
        ValueError: If the runtime is not installed or cannot run a file.
    """
    deployment = dataclasses.replace(kit.deployment, target=target)
    files = kit.files
    jobs = [Job(opener(folder / file, deployment, threads)) for file in files]
    clock = clock_for(threads, on_gpu=target == "tensorrt")
    seconds = dict(
        zip(files, time_in_turn(jobs, clock=clock, rng=rng, progress=progress), strict=True)
    )
    empty = LatencyTable.begun(kit.macro, deployment, device=processor_name(), threads=threads)
    compared = [one for one in kit.wholes if not one.is_fitted]
    names = [one.name for one in compared]
    if not kit.parts:
        checked = [
            Checked(one.architecture, one.expected_ms or 0.0, latency_of(seconds[one.file]))
            for one in compared
        ]
        return MeasuredKit(table=None, checked=checked, names=names, where=str(empty))
    times = Times(
        call=seconds[CALL],
        parts={part: seconds[file] for part, file in kit.parts.items()},
        fitted=[(w.architecture, seconds[w.file]) for w in kit.wholes if w.is_fitted],
        checked=[(w.architecture, seconds[w.file]) for w in compared],
    )
    table, checked = fit_table(empty, times)
    return MeasuredKit(table=table, checked=checked, names=names, where=str(table))


def opener(path: Path, deployment: Deployment, threads: int) -> Callable[[], Callable[[], object]]:
    """Put off opening a file until it is its turn."""
    return lambda: open_network(path, deployment, threads=threads).runner()


def _inside(file: Any) -> str:
    """Refuse the name of a file outside the kit's folder."""
    if not isinstance(file, str) or Path(file).name != file:
        raise ValueError(f"a file of the kit is a name without a folder, got {file!r:.60}")
    return file
