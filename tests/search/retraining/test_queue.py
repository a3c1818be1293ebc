"""Laws of `search retrain`: what a training starts from, its name, its processes, its speed."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from search.record import Measured
from search.record.record import Record
from search.retraining import queue as retraining
from search.retraining import training_queue
from search.retraining.attempt import Ended
from search.retraining.network import RetrainOptions, retrain
from search.retraining.queue import RetrainPlan, resized, retrain_members
from search.retraining.training_queue import FAILED
from search.run_folder import RunFolder, create_run
from search.run_folder.settings import RunSettings
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, Elsa, WindowAttention
from supernet.data import ImageData, prepare_data
from supernet.network.supernet import Supernet, extract
from supernet.shared_weights.checkpoint import save_supernet
from supernet.training.epoch_report import EpochReport, read_csv, starvation, to_csv
from tests.attacks.retraining_stubs import tiny_run
from tests.tiny_data import changed, noise, tiny_data

SPACES = Path(__file__).parents[3] / "configs" / "spaces"
FORK = multiprocessing.get_context("fork")
MIXERS = (DepthwiseConv(kernel_size=3), WindowAttention(window_size=2, num_heads=2))
ARCHITECTURE = Architecture(
    img_size=8, patch_size=2, num_classes=3, stages=(Stage(dim=8, mixers=MIXERS),)
)
RECIPE = changed("micro", epochs=2, warmup_epochs=0, batch_size=8, shard_size=4, drop_path=0.2)
REPORT = EpochReport(
    epoch=1,
    epochs=2,
    seconds=10.0,
    loss=2.5,
    lr=1e-3,
    images=500,
    wait_seconds=4.0,
    read_seconds=30.0,
    augment_seconds=5.0,
)

SPACE = """
name: tiny
img_size: 8
patch_size: 4
stages: [{dim: 8, depth: 1}]
mixers:
  window_attention: {window_size: 2, num_heads: [1, 2]}
  depthwise_conv: {kernel_size: [3, 5]}
"""


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    (tmp_path / "data").mkdir()
    return tiny_data(tmp_path / "data", *noise(40, 8, num_classes=3), num_test=12)


def test_two_processes_leave_the_folder_that_one_leaves(data: ImageData, tmp_path: Path) -> None:
    one, two = RetrainOptions(out=tmp_path / "one"), RetrainOptions(out=tmp_path / "two")
    expected = retrain(ARCHITECTURE, data, RECIPE, one)

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        group = (f"file://{tmp_path}/meeting", 2, rank)
        result = retrain(ARCHITECTURE, data, RECIPE, replace(two, group=group))
        os._exit(0 if replace(result, seconds=0) == replace(expected, seconds=0) else 1)

    children = [FORK.Process(target=work, args=(rank,)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0

    for name in ("model.safetensors", "model_ema.safetensors"):
        states = [load_file(options.out / name) for options in (one, two)]
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert {path.name for path in one.out.iterdir()} == {path.name for path in two.out.iterdir()}


def test_a_larger_image_starts_from_the_smaller_ones_weights(
    data: ImageData, tmp_path: Path
) -> None:
    small = retrain(ARCHITECTURE, data, RECIPE, RetrainOptions(out=tmp_path / "small"))
    plan = RetrainPlan(img_size=16, taps=(3, 5))
    larger = resized(ARCHITECTURE, plan)
    (tmp_path / "data16").mkdir()
    data16 = tiny_data(tmp_path / "data16", *noise(40, 16, num_classes=3), num_test=12)
    still = changed(RECIPE, epochs=1, lr=1e-12, warmup_lr=0, min_lr=0, weight_decay=0)
    start = load_file(tmp_path / "small" / "model_ema.safetensors")

    result = retrain(
        larger, data16, still, RetrainOptions(out=tmp_path / "large", start=start, start_name="x")
    )

    assert (small.start, result.start) == ("fresh", "x")
    weights = load_file(tmp_path / "large" / "model.safetensors")
    torch.testing.assert_close(weights["head.weight"], start["head.weight"])
    (kernel,) = (name for name in weights if name.endswith("depthwise_conv.weight"))
    assert (start[kernel].shape, weights[kernel].shape) == ((9, 8), (25, 8))
    # Bicubic over the offsets (Keys 1981, a = -3/4), less by the number of taps gained.
    to_five = cubic_matrix(3, 5)
    planes = start[kernel].t().unflatten(1, (3, 3))
    expected = (to_five @ planes @ to_five.t() * 9 / 25).flatten(1).t()
    assert expected.abs().min() > 1e-6
    torch.testing.assert_close(weights[kernel], expected, atol=1e-6, rtol=1e-4)
    table = next(name for name in weights if name.endswith("norm.weight"))
    torch.testing.assert_close(weights[table], start[table])


def cubic_matrix(old: int, new: int) -> torch.Tensor:
    """Write cubic convolution from ``old`` to ``new`` samples, borders repeated, as a matrix."""
    matrix = torch.zeros(new, old)
    for row in range(new):
        place = (row + 0.5) * old / new - 0.5
        for sample in range(math.floor(place) - 1, math.floor(place) + 3):
            d = abs(place - sample)
            near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[row, min(max(sample, 0), old - 1)] += near if d <= 1 else far
    return matrix


def test_taps_change_windows_and_kernels_of_that_size_alone() -> None:
    stages = (
        Stage(
            dim=8,
            mixers=(
                DepthwiseConv(kernel_size=3),
                Elsa(kernel_size=5, num_heads=2),
                WindowAttention(window_size=3, num_heads=2),
            ),
        ),
    )
    architecture = Architecture(img_size=24, patch_size=2, stages=stages)

    changed_ = resized(architecture, RetrainPlan(taps=(3, 5), img_size=48))

    first, second, third = changed_.stages[0].mixers
    assert (first, second) == (DepthwiseConv(kernel_size=5), Elsa(kernel_size=5, num_heads=2))
    assert third == WindowAttention(window_size=5, num_heads=2)
    assert changed_.img_size == 48
    with pytest.raises(ValueError, match="has the size 9"):
        resized(architecture, RetrainPlan(taps=(9, 11)))


def test_trainings_that_differ_have_different_names(tmp_path: Path) -> None:
    plans = [
        RetrainPlan(),
        RetrainPlan(epochs=3),
        RetrainPlan(inherit=True),
        RetrainPlan(start=tmp_path / "7-micro-30e-s0"),
        RetrainPlan(img_size=64),
        RetrainPlan(img_size=64, taps=(7, 11)),
    ]
    recipes = [replace(plan, recipe="micro").load_recipe() for plan in plans]

    names = [plan.label(recipe) for plan, recipe in zip(plans, recipes, strict=True)]

    assert names == [
        *("micro-30e", "micro-3e", "micro-30e-inherited", "micro-30e-from-7-micro-30e-s0"),
        *("micro-30e-64px", "micro-30e-64px-7to11"),
    ]
    with pytest.raises(ValueError, match="one start"):
        RetrainPlan(inherit=True, start=tmp_path)


class Inline:
    """Stands in for the Ray cluster: what is submitted runs at once."""

    devices = node_devices = 2

    def __init__(self, *, device: str, address: str | None) -> None:
        assert (device, address) == ("cpu", None)

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def reserve(self, devices: int, *, threads: int) -> SimpleNamespace:
        return SimpleNamespace(is_held=True)

    def release(self, place: SimpleNamespace) -> None:
        pass

    def submit(self, function: Any, *arguments: Any, place: SimpleNamespace) -> Any:
        return (object(), function(*arguments))


class Curves:
    """Stands in for a tracker."""

    last_step = -1

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.names: set[str] = set()
        self.end = ""

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.steps.append(step)
        self.names |= set(values)

    def close(self, end: str) -> None:
        self.end = end


def test_a_queue_is_worked_off_charged_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_queue, "Cluster", Inline)
    monkeypatch.setattr(
        training_queue, "take_finished", lambda pending: [(p, p[1], None) for p in pending]
    )
    curves = Curves()
    monkeypatch.setattr(retraining, "open_tracker", lambda *_, **__: curves)
    settings = RunSettings(space="digits", data="digits", budget="60cpu-seconds")
    folder = tmp_path / "run"
    folder.mkdir()
    prepare_data("digits", img_size=16, folder=folder / "data")
    shutil.copy(
        Path(__file__).parents[3] / "configs" / "spaces" / "digits.yaml", folder / "space.yaml"
    )
    small = replace(ARCHITECTURE, img_size=16, num_classes=10)
    out = StringIO()
    plan = RetrainPlan(recipe="quick", epochs=1)
    with Record.create(folder / "record.db") as record:
        record.set_meta("settings", settings.to_dict())
        number = record.add_architecture(small, params=1, macs=1)
        run = RunFolder(folder, record, settings)

        for _ in range(2):
            stopped = retrain_members(run, [number], plan, console=Console(file=out))

        assert stopped is None
        assert record.spent(["retrain"]) > 0
        (trial,) = record.trials()
        assert (trial.state, trial.fidelity) == ("done", "retrain-quick-1e")
        assert trial.measured.total == 359
        with pytest.raises(ValueError, match="no trained supernet"):
            retrain_members(run, [number], replace(plan, inherit=True), console=Console(file=out))
    assert (folder / "retrain" / f"{number}-quick-1e-s0" / "result.json").exists()
    assert out.getvalue().count("of 359 test images") == 2
    assert (curves.steps, curves.end) == ([1, 2], "done")  # its epoch, and its end
    assert {"loss", "lr", "test_top1"} <= curves.names


def test_inherited_weights_are_those_of_the_runs_supernet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_out: list[RetrainOptions] = []

    class Stopping(Inline):
        def submit(self, function: Any, *arguments: Any, place: SimpleNamespace) -> Any:
            handed_out.append(arguments[3])
            return object(), None

    monkeypatch.setattr(training_queue, "Cluster", Stopping)
    monkeypatch.setattr(
        training_queue, "take_finished", lambda pending: [(p, None, "stopped") for p in pending]
    )
    (tmp_path / "tiny.yaml").write_text(SPACE)
    settings = RunSettings(
        space=str(tmp_path / "tiny.yaml"),
        data="digits",
        budget="60cpu-seconds",
        projections="shared",
    )
    plan = RetrainPlan(recipe="quick", epochs=1, inherit=True)
    with create_run(tmp_path / "run", settings) as run:
        supernet = Supernet(run.space(), sharing=run.settings.sharing)
        save_supernet(
            run.folder / "supernet", step=1, supernet=supernet, averaged=None, training={}
        )
        architecture = run.space().extreme("macs", largest=False)
        number = run.record.add_architecture(architecture, params=1, macs=1)

        retrain_members(run, [number], plan, console=Console(file=StringIO()))

        expected = extract(supernet, architecture).state_dict()
        start = handed_out[0].start
        assert start is not None
        assert start.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in start.items())


def test_a_table_of_epochs_is_read_as_it_was_written() -> None:
    history = [REPORT, replace(REPORT, epoch=2, loss=1 / 3, skipped_steps=1)]

    assert read_csv(to_csv(history)) == history


def test_what_starves_the_device_is_named() -> None:
    assert starvation(replace(REPORT, wait_seconds=0.5)) is None
    text = starvation(REPORT)
    assert text is not None
    assert "40%" in text
    assert "reading and decoding" in text
    text = starvation(replace(REPORT, read_seconds=1.0))
    assert text is not None
    assert "augmenting images (1.0 s read, 5.0 s augmented)" in text


def test_devices_that_cannot_share_a_batch_are_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    settings = RunSettings(space="digits", data="digits", budget="60cpu-seconds")
    with create_run(tmp_path / "run", settings) as run:
        number = run.record.add_architecture(run.space().first(), params=1, macs=1)
        plan = RetrainPlan(recipe="quick", devices=33)
        with pytest.raises(ValueError, match=r"two images of a batch of 64, got 33 devices"):
            retrain_members(run, [number], plan, console=Console(file=StringIO()))
        assert not run.record.trials()


def test_a_network_on_two_devices_is_a_group_and_all_are_told_what_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiny_run(tmp_path, monkeypatch) as tiny:
        tiny.cluster.fates = [fails] * 3
        assert tiny.retrain(tiny.small, devices=2, seeds=(5,)) == FAILED
        assert tiny.retrain(tiny.larger, devices=1) == FAILED

        assert [arguments[-1].seed for arguments in tiny.cluster.submitted] == [5, 5, 0]
        groups = [arguments[-1].group for arguments in tiny.cluster.submitted]
        address = groups[0][0]
        assert address.startswith("file://")
        assert groups == [(address, 2, 0), (address, 2, 1), None]
        charged = [(row[4], row[8]) for row in tiny.run.record.ledger()]
        assert charged == [(2.0, "failed"), (2.0, "failed")]
        said = tiny.out.getvalue()
        assert f"Network {tiny.small}, seed 5: dw3, win2 h2, 3 epochs of mine" in said
        assert "given up; the same command goes on with it" in said


def fails(job: tuple[Any, ...]) -> tuple[Any, str | None]:
    """Let a device find that the network cannot be trained."""
    return Ended(end="failed", cause="a loss of nothing"), None


def test_networks_of_one_recipe_have_one_fidelity_and_another_recipe_of_its_name_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiny_run(tmp_path, monkeypatch) as tiny:
        assert tiny.retrain(tiny.small) is None
        assert tiny.retrain(tiny.larger) is None
        assert [t.fidelity for t in tiny.run.record.trials()] == ["retrain-mine-3e"] * 2
        recipe = tiny.run.folder / "mine.yaml"
        recipe.write_text(recipe.read_text().replace("drop_path: 0.2", "drop_path: 0.1"))
        assert tiny.retrain(tiny.small) is None
        named = [t.fidelity for t in tiny.run.record.trials()]
        assert named[:2] == ["retrain-mine-3e"] * 2
        assert named[2].startswith("retrain-mine-3e-")


@pytest.mark.parametrize(
    ("budget", "devices", "tasks", "threads", "held"),
    [
        ("1gpu-minute", 2, 1, 4, 2),
        ("1gpu-minute", 1, 9, 4, 1),
        ("1cpu-minute", 1, 1, 2, 2),
        ("1cpu-minute", 1, 2, 1, 1),
        ("1cpu-minute", 2, 1, 1, 2),
    ],
)
def test_what_a_training_holds_is_its_devices_or_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, budget: str, devices: int, tasks: int, threads: int, held: int
) -> None:
    monkeypatch.setattr(training_queue, "count_cores", lambda: 2)
    settings = RunSettings(space="digits", data="digits", budget=budget)
    run = SimpleNamespace(settings=settings)
    cluster = SimpleNamespace(devices=2, node_devices=2)
    prepared = SimpleNamespace(plan=SimpleNamespace(devices=devices), recipe=None)
    queue = retraining._Queue(
        run,  # type: ignore[arg-type]
        cluster,  # type: ignore[arg-type]
        prepared,  # type: ignore[arg-type]
        Console(file=StringIO()),
        tasks=tasks,
        track=None,
    )
    assert (queue.threads, queue.held) == (threads, held)
    assert queue.loader_workers(None) == (8 if "gpu" in budget else 0)
    assert queue.loader_workers(3) == 3


def test_what_the_search_found_of_a_network_is_no_retraining_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiny_run(tmp_path, monkeypatch) as tiny:
        record = tiny.run.record
        trial = record.add_trial(tiny.small, fidelity="supernet", seed=0, origin="search")
        attempt = record.start_attempt("search", devices=0, trial_id=trial)
        values = Measured(top1=1.0, correct=1.0, total=100.0)
        record.finish_attempt(attempt, outcome="done", measured=values)
        assert tiny.retrain() is None
        assert len(tiny.cluster.submitted) == 1
