"""A tiny run whose networks are retrained in this process, by devices that fail as a test says."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from search.record.record import Record
from search.retraining import training_queue
from search.retraining.network import RetrainOptions, retrain
from search.retraining.queue import RetrainPlan, retrain_members
from search.run_folder.folder import RunFolder
from search.run_folder.settings import RunSettings
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, WindowAttention
from supernet.data import prepare_data
from supernet.recipes.recipe import dump_recipe
from supernet.training.training import TrainingStopped
from tests.clock import Clock
from tests.tiny_data import changed

MIXERS = (DepthwiseConv(kernel_size=3), WindowAttention(window_size=2, num_heads=2))
SMALL = Architecture(img_size=8, patch_size=2, num_classes=2, stages=(Stage(dim=8, mixers=MIXERS),))
LARGER = replace(SMALL, stages=(Stage(dim=16, mixers=MIXERS),))
RECIPE = changed(
    "micro", name="mine", epochs=3, warmup_epochs=0, batch_size=8, shard_size=4, drop_path=0.2
)

# What becomes of what is submitted: what `take_finished` says of it, or None while it works.
Fate = Callable[[tuple[Any, ...]], tuple[Any, str | None] | None]


@dataclass
class Devices:
    """Stands in for the Ray cluster: functions run when they are asked for, or meet their fates."""

    devices: int = 2
    fates: list[Fate] = field(default_factory=list)
    submitted: list[tuple[Any, ...]] = field(default_factory=list)
    held: int = 0
    released: int = 0
    reserved: list[SimpleNamespace] = field(default_factory=list)
    looked: Callable[[], None] = lambda: None

    def __enter__(self) -> Devices:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def reserve(self, devices: int, *, threads: int) -> SimpleNamespace:
        """Give devices, as soon as it is asked."""
        self.held += devices * threads
        place = SimpleNamespace(is_held=self.held <= self.devices, size=devices * threads)
        self.reserved.append(place)
        return place

    def release(self, place: SimpleNamespace) -> None:
        """Take them back."""
        self.held -= place.size
        self.released += 1

    def submit(self, function: Any, *arguments: Any, place: SimpleNamespace) -> Any:
        """Remember what is to be done."""
        self.submitted.append(arguments)
        fate = self.fates.pop(0) if self.fates else works
        return (len(self.submitted), fate, (function, arguments))

    def take_finished(self, pending: list[Any]) -> list[tuple[Any, Any, str | None]]:
        """Work, one after the other."""
        self.looked()
        ends = [(reference, reference[1](reference[2])) for reference in pending]
        return [(reference, *end) for reference, end in ends if end is not None]


def works(job: tuple[Any, ...]) -> tuple[Any, str | None]:
    """Let a device do what it was asked for."""
    function, arguments = job
    return function(*arguments), None


def dies(job: tuple[Any, ...]) -> tuple[Any, str | None]:
    """Let a device die before it has done anything."""
    return None, "The worker died unexpectedly."


def hangs(job: tuple[Any, ...]) -> None:
    """Let a device wait for ever."""


def dies_after(epochs: int) -> Fate:
    """Let a device die when so many epochs are done."""

    def die(job: tuple[Any, ...]) -> tuple[Any, str | None]:
        _, (architecture, data, recipe, options) = job
        seen: list[object] = []
        stopping: RetrainOptions = replace(
            options, on_epoch=seen.append, should_stop=lambda: len(seen) == epochs
        )
        with pytest.raises(TrainingStopped):
            retrain(architecture, data, recipe, stopping)
        return None, "The worker died unexpectedly."

    return die


def raises(error: Exception) -> Fate:
    """Let the work raise an error, as a library would in the middle of it."""

    def fail(job: tuple[Any, ...]) -> tuple[Any, str | None]:
        function, arguments = job
        with pytest.MonkeyPatch.context() as patch:

            def refuse(*_: object) -> None:
                raise error

            patch.setattr("search.retraining.attempt.retrain", refuse)
            return function(*arguments), None

    return fail


@dataclass
class TinyRun:
    """A run with two networks, `SMALL` and `LARGER`, its record's clock, and its devices."""

    run: RunFolder
    clock: Clock
    cluster: Devices
    source: Path
    small: int
    larger: int
    out: StringIO = field(default_factory=StringIO)

    def retrain(self, *ids: int, **asked: Any) -> str | None:
        """Retrain networks (default: the small one) with `RECIPE`, or as asked."""
        recipe = self.run.folder / "mine.yaml"
        if not recipe.exists():
            recipe.write_text(dump_recipe(RECIPE))
        plan = RetrainPlan(**({"recipe": str(recipe)} | asked))
        console = Console(file=self.out)
        return retrain_members(self.run, ids or (self.small,), plan, console=console)

    def outcomes(self) -> list[tuple[Any, ...]]:
        """List trial, outcome and devices of all attempts."""
        return [(row[2], row[8], row[4]) for row in self.run.record.ledger()]

    def states(self) -> list[str]:
        """List the states of all trials."""
        return [trial.state for trial in self.run.record.trials()]


@contextmanager
def tiny_run(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[TinyRun]:
    """Make the run over images of noise, 24 to train on and 8 to test."""
    source, clock, cluster = folder / "images", Clock(), Devices()
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label in ("ant", "bee"):
            place = source / split / label
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    run = folder / "run"
    run.mkdir()
    prepare_data(str(source), img_size=8, folder=run / "data")
    patch.setattr(training_queue, "Cluster", lambda *, device, address: cluster)
    patch.setattr(training_queue, "take_finished", cluster.take_finished)
    patch.setattr(training_queue, "LOOK_SECONDS", 0.0)
    space = Path(__file__).parents[2] / "configs" / "spaces" / "digits.yaml"
    shutil.copy(space, run / "space.yaml")
    settings = RunSettings(space="digits", data=str(source), budget="60cpu-seconds")
    with Record.create(run / "record.db", clock=clock) as record:
        record.set_meta("settings", settings.to_dict())
        numbers = [record.add_architecture(a, params=1, macs=1) for a in (SMALL, LARGER)]
        yield TinyRun(RunFolder(run, record, settings), clock, cluster, source, *numbers)
