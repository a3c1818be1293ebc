"""Does the best network for classification stay best downstream? Kendall's tau of a few networks.

Networks of `micro_128`, some with one mixer everywhere, the others at random. Each is trained
alone as a segmenter and as a detector with shipped recipes, from scratch, and judged on the images
that the data keeps for that; and as a classifier of photographs at the same size. One supernet a
task is trained under shared heads and judges the same networks on training images that it was kept
from, batch norms recalibrated. The table sets what a search could know (the supernet's mIoU or AP,
top-1, the size) against what training alone gave.

Killed at any moment, the same command goes on. Work is in rounds of one network each, so that what
there is after a while is a study of fewer networks; the table says of how many.

    python benchmarks/dense_rank_study.py STUDY --data ../shared/data
    python benchmarks/dense_rank_study.py STUDY --table
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from search.transferring.network import TransferOptions, transfer
from search.trust.ranking import kendall_tau_interval
from searchspace.architecture import Architecture, describe
from searchspace.cost import count
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space
from supernet.data import ImageData, prepare_data
from supernet.data.dense import DenseData, open_dense_data
from supernet.network.supernet import build_subnet
from supernet.recipes.dense_recipe import DenseRecipe, load_dense_recipe, with_length
from supernet.recipes.recipe import Recipe, load_recipe, with_epochs
from supernet.training.training import TrainingOptions, train

SPACE = "micro_128"
RESULTS = "results.jsonl"
PHOTOGRAPHS = "clothing10_144.tar"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is done downstream, with which file of ``--data``."""

    name: str
    file: str
    recipe: str
    steps: int
    supernet_steps: int
    measure: str


TASKS = (
    Task(
        name="semantic",
        file="nuclei_det_seg.tar",
        recipe="cells_semantic",
        steps=240,
        supernet_steps=600,
        measure="miou",
    ),
    Task(
        name="detection",
        file="bccd_det.tar",
        recipe="cells_detection",
        steps=300,
        supernet_steps=600,
        measure="ap_box",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study in a folder.

    Attributes:
        data: The folder with the files.
        networks: How many.
        epochs: Of the classifiers.
        scale: Times the steps of all dense trainings, to try the script out.
    """

    folder: Path
    data: Path
    networks: int
    epochs: int
    scale: float = 1.0

    def run(self) -> Iterator[str]:
        """Do what is left, and yield the name of each piece of work that is done."""
        done = {line["job"] for line in read_lines(self.folder)}
        for name, work in self._jobs():
            if name not in done:
                values = work()
                with (self.folder / RESULTS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"job": name, "values": values}) + "\n")
                yield name

    def _jobs(self) -> Iterator[tuple[str, Callable[[], Mapping[str, Mapping[str, float]]]]]:
        networks = choose_networks(self.space, self.networks)
        for number, network in enumerate(networks):
            if number == 6:  # judges all of them, so that a study of few networks has it too
                for task in TASKS:
                    yield f"supernet-{task.name}", lambda task=task: self._supernet(task, networks)  # type: ignore[misc]
            for task in TASKS:
                yield (
                    f"{task.name}-{network.key}",
                    lambda task=task, network=network: self._alone(task, network),  # type: ignore[misc]
                )
            yield f"top1-{network.key}", lambda network=network: self._classifier(network)  # type: ignore[misc]

    @cached_property
    def space(self) -> SearchSpace:
        """The networks."""
        return load_space(SPACE)

    @cached_property
    def photographs(self) -> ImageData:
        """The images of the classifiers."""
        return prepare_data(
            str(self.data / PHOTOGRAPHS),
            img_size=self.space.img_size,
            folder=self.folder / "photographs",
        )

    def _dense(self, task: Task, steps: int) -> tuple[DenseData, DenseRecipe]:
        found = open_dense_data(
            str(self.data / task.file), task.name, unpack_to=self.folder / "unpacked"
        )
        steps = max(round(steps * self.scale), 1)
        return found, with_length(load_dense_recipe(task.recipe), steps=steps)

    def _alone(self, task: Task, network: Architecture) -> dict[str, dict[str, float]]:
        data, recipe = self._dense(task, task.steps)
        out = self.folder / f"{task.name}-{network.key}"
        result = transfer(network, data, recipe, TransferOptions(out=out, threads=1))
        assert result is not None
        return {network.key: {f"{task.name}-alone": result.measured.value(task.measure)}}

    def _classifier(self, network: Architecture) -> dict[str, dict[str, float]]:
        data, out = self.photographs, self.folder / f"top1-{network.key}"
        own = network.replace(num_classes=data.num_classes)
        torch.manual_seed(0)
        options = TrainingOptions(
            train_split=data.split("train"), eval_split=data.split("search"), seed=0, out=out
        )
        recipe = classifier_recipe(self.epochs)
        accuracy = train(build_subnet(own, recipe.drop_path), data, recipe, options).accuracy
        return {network.key: {"top1": accuracy.top1}}

    def _supernet(
        self, task: Task, networks: Sequence[Architecture]
    ) -> dict[str, dict[str, float]]:
        from supernet.dense.judging import judge
        from supernet.dense.network import extract_dense
        from supernet.dense.shared import DenseSupernetTrainer, calibration_batches
        from supernet.training import recalibrate

        data, recipe = self._dense(task, task.supernet_steps)
        learned, judged = data.held_out(0)
        assert recipe.steps is not None
        trainer = DenseSupernetTrainer(
            self.space, learned, recipe, strategy="uniform", total_steps=recipe.steps, seed=0
        )
        out = self.folder / f"supernet-{task.name}"
        trainer.load(out)
        while trainer.step < trainer.total_steps:
            trainer.run(25)
            trainer.save(out)
        name, calibration = f"{task.name}-supernet", calibration_batches(learned, recipe)

        def judged_inherited(architecture: Architecture) -> float:
            network = extract_dense(trainer.supernet, architecture)
            recalibrate(network, calibration)
            return judge(network, judged, recipe).values()[task.measure]

        return {network.key: {name: judged_inherited(network)} for network in networks}


def classifier_recipe(epochs: int) -> Recipe:
    """Return the short recipe of a search, for photographs of any size."""
    changes = {
        "name": "quick_photos",
        "batch_size": 64,
        "random_crop_padding": 0,
        "random_resized_crop": (0.5, 1.0),
    }
    quick = Recipe.model_validate({**load_recipe("quick").model_dump(), **changes})
    return with_epochs(quick, epochs)


def choose_networks(space: SearchSpace, number: int) -> list[Architecture]:
    """Choose some with one mixer everywhere, and as many at random, in turn."""
    single = [a for _, a in space.single_mixer_architectures() if space.violation(a) is None]
    rng = random.Random("dense study")
    rng.shuffle(single)
    chosen: dict[str, Architecture] = {}
    while len(chosen) < number:
        if single:
            one = single.pop()
            chosen.setdefault(one.key, one)
        one = space.sample(rng)
        chosen.setdefault(one.key, one)
    return list(chosen.values())[:number]


def read_lines(folder: Path) -> list[dict[str, object]]:
    """Read the finished pieces of work; a line that was cut off by a kill is not there."""
    path = folder / RESULTS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def print_table(folder: Path, networks: Sequence[Architecture]) -> None:
    """Print what was measured of each network, and the taus, in Markdown."""
    values: dict[str, dict[str, float]] = {}
    for line in read_lines(folder):
        found = line["values"]
        assert isinstance(found, dict)
        for key, own in found.items():
            values.setdefault(key, {}).update(own)
    for network in networks:
        cost = count(network)
        size = {"params": float(cost.params), "macs": float(cost.macs)}
        values.setdefault(network.key, {}).update(size)
    columns = ["params", "macs", "top1"]
    columns += [f"{task.name}-{kind}" for task in TASKS for kind in ("supernet", "alone")]
    print(f"| network | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for network in networks:
        own = values[network.key]
        cells = [f"{own[n]:,.0f}" if n in ("params", "macs") else _percent(own, n) for n in columns]
        print(f"| {describe(network).replace('|', ';')} | {' | '.join(cells)} |")
    print("\n| estimate | against | Kendall's tau | 95 % interval | networks |")
    print("|---|---|---:|---|---:|")
    for task in TASKS:
        for name in (f"{task.name}-supernet", "top1", "params", "macs"):
            _print_tau(name, f"{task.name}-alone", list(values.values()))
    _print_tau("semantic-alone", "detection-alone", list(values.values()))


def _percent(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.1f}" if name in values else ""


def _print_tau(name: str, against: str, rows: Sequence[Mapping[str, float]]) -> None:
    pairs = [(row[name], row[against]) for row in rows if name in row and against in row]
    if len(pairs) < 2:
        print(f"| {name} | {against} | not measured | | {len(pairs)} |")
        return
    tau = kendall_tau_interval(*zip(*pairs, strict=True), rng=np.random.default_rng(0))
    text = "undefined" if tau.tau is None else f"{tau.tau:.2f}"
    ends = "too few" if tau.low is None else f"{tau.low:.2f} to {tau.high:.2f}"
    print(f"| {name} | {against} | {text} | {ends} | {len(pairs)} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of the study")
    parser.add_argument("--data", type=Path, help="folder with the tars")
    parser.add_argument("--networks", type=int, default=14)
    parser.add_argument("--epochs", type=int, default=6, help="of the classifiers")
    parser.add_argument("--scale", type=float, default=1.0, help="times the dense steps")
    parser.add_argument("--table", action="store_true", help="of what is there")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.table:
        print_table(given.folder, choose_networks(load_space(SPACE), given.networks))
        return
    if given.data is None:
        parser.error("--data is the folder with the tars, unless --table is given")
    given.folder.mkdir(parents=True, exist_ok=True)
    study = Study(
        folder=given.folder,
        data=given.data,
        networks=given.networks,
        epochs=given.epochs,
        scale=given.scale,
    )
    for name in study.run():
        print(name, flush=True)


if __name__ == "__main__":
    main()
