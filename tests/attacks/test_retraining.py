"""Attacks on `search retrain`: what the machine did is lost, what the user did wrong is refused.

A failure can be repeated, and a result is never that of another training.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from configs import config_names
from search.cli.app import app
from search.record import Measured
from search.record.record import Record
from search.retraining import queue, training_queue, wanted
from search.retraining.attempt import Ended
from search.retraining.network import RetrainOptions, retrain
from search.retraining.queue import RetrainPlan
from search.retraining.training_queue import FAILED, FULL_DISK, MAX_AGAIN
from search.terminal.progress import StopSignals
from supernet.data.arrays import is_stored
from supernet.network.supernet import build_subnet
from supernet.recipes.recipe import dump_recipe, load_recipe
from supernet.training import EpochReport
from supernet.training.batches import TrainLoader, count_shards, with_shards_for
from tests.attacks.retraining_stubs import (
    LARGER,
    RECIPE,
    SMALL,
    TinyRun,
    dies,
    dies_after,
    hangs,
    raises,
    tiny_run,
)
from tests.tiny_data import changed, noise, tiny_data
from tests.tiny_run import write_run


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyRun]:
    with tiny_run(tmp_path, monkeypatch) as tiny:
        yield tiny


def test_a_killed_worker_is_lost_and_its_training_goes_on_to_the_same_bits(
    tiny: TinyRun, tmp_path: Path
) -> None:
    undisturbed = RetrainOptions(out=tmp_path / "whole", seed=0, threads=1)
    recipe = with_shards_for(RECIPE, 24, 1)
    expected = retrain(SMALL, tiny.run.data(), recipe, undisturbed)
    tiny.cluster.devices = 1
    tiny.cluster.fates = [dies_after(1), dies_after(1)]

    assert tiny.retrain() is None

    assert [outcome for _, outcome, _ in tiny.outcomes()] == ["lost", "lost", "done"]
    (trial,) = tiny.run.record.trials()
    assert (trial.state, trial.measured.correct) == ("done", expected.accuracy.correct)
    found = tiny.run.folder / "retrain" / f"{tiny.small}-mine-3e-s0"
    for name in ("model.safetensors", "model_ema.safetensors"):
        assert (found / name).read_bytes() == (undisturbed.out / name).read_bytes()


def test_a_worker_that_is_lost_again_and_again_is_given_up_and_waits(tiny: TinyRun) -> None:
    tiny.cluster.devices = 1
    tiny.cluster.fates = [dies] * (1 + MAX_AGAIN)

    assert tiny.retrain(tiny.small, tiny.larger) == FAILED

    assert tiny.states() == ["waiting", "done"]
    assert [o for trial, o, _ in tiny.outcomes() if trial == 1] == ["lost"] * 4
    assert tiny.retrain(tiny.small, tiny.larger) is None
    assert tiny.states() == ["done", "done"]


def test_an_epoch_between_losses_is_a_new_beginning(tiny: TinyRun) -> None:
    # Lost six times, and never four times without an epoch between.
    tiny.cluster.fates = [dies, dies, dies_after(1), dies, dies, dies_after(1)]

    assert tiny.retrain() is None

    assert [outcome for _, outcome, _ in tiny.outcomes()] == ["lost"] * 6 + ["done"]


def test_the_rest_of_a_group_that_lost_one_is_ended_and_all_are_charged(tiny: TinyRun) -> None:
    def pass_time() -> None:
        tiny.clock.now += 10.0

    tiny.cluster.looked = pass_time
    tiny.cluster.fates = [hangs, dies, hangs, dies, *[dies] * 4]

    assert tiny.retrain(devices=2) == FAILED

    # Two tasks an attempt, of which one died; the other was ended with the place of both.
    assert (tiny.cluster.released, tiny.cluster.held) == (4, 0)
    # Two devices for ten seconds, four times.
    assert tiny.outcomes() == [(1, "lost", 2.0)] * 4
    assert tiny.run.record.spent(["retrain"]) == pytest.approx(80.0)


def test_a_group_that_waits_for_a_device_holds_none_and_is_charged_for_none(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray may count the device of a dead node for some seconds: the group must not be torn."""
    tiny.cluster.held = 1  # of a node that is gone
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        tiny.clock.now += 10.0
        waited.append(seconds)
        assert tiny.cluster.submitted == []
        assert not tiny.run.record.ledger()
        if len(waited) == 60:
            for training in tiny.cluster.reserved:
                training.is_held = True

    monkeypatch.setattr(training_queue, "time", SimpleNamespace(sleep=sleep))
    tiny.cluster.fates = [lambda job: (Ended(end="failed", cause="none"), None)] * 2
    assert tiny.retrain(devices=2) == FAILED
    assert waited == [training_queue.PLACE_SECONDS] * 60
    assert tiny.run.record.spent(["retrain"]) == 0.0  # the clock stood still while it trained
    assert len(tiny.cluster.submitted) == 2
    assert tiny.cluster.released == 1
    assert "waits for 2 cores that are free at the same time" in tiny.out.getvalue()


def test_what_waits_for_devices_when_the_user_stops_gives_them_back(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.cluster.held = 1
    asked: list[StopSignals] = []
    enter = StopSignals.__enter__
    monkeypatch.setattr(StopSignals, "__enter__", lambda self: asked.append(self) or enter(self))

    def stop(_: float) -> None:
        asked[0].requested = "SIGTERM"

    monkeypatch.setattr(training_queue, "time", SimpleNamespace(sleep=stop))
    assert tiny.retrain(devices=2) == "SIGTERM"
    assert (tiny.cluster.released, tiny.cluster.held) == (1, 1)
    assert not tiny.run.record.ledger()


def test_an_interrupted_retraining_is_closed(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StopSignals, "__exit__", lambda *_: None)
    asked: list[StopSignals] = []
    enter = StopSignals.__enter__
    monkeypatch.setattr(StopSignals, "__enter__", lambda self: asked.append(self) or enter(self))

    def ask() -> None:
        tiny.clock.now += 5.0
        asked[0].requested = "SIGTERM"

    tiny.cluster.looked, tiny.cluster.fates = ask, [hangs]

    assert tiny.retrain() == "SIGTERM"

    ((_, _, _, _, _, started, _, ended, outcome, _, seconds),) = tiny.run.record.ledger()
    assert (ended - started, outcome, seconds) == (5.0, "interrupted", 5.0 * 2)
    assert tiny.states() == ["waiting"]
    assert (tiny.cluster.released, tiny.cluster.held) == (1, 0)
    tiny.cluster.looked = lambda: None
    assert tiny.retrain() is None


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("disk quota exceeded")],
)
def test_a_full_disk_is_lost_ends_the_command_and_is_gone_on_from(
    tiny: TinyRun, error: Exception
) -> None:
    tiny.cluster.devices = 1
    tiny.cluster.fates = [raises(error)]

    assert tiny.retrain(tiny.small, tiny.larger) == FULL_DISK

    assert tiny.outcomes() == [(1, "lost", 1.0)]
    assert "Free some space" in tiny.out.getvalue()
    assert tiny.retrain(tiny.small, tiny.larger) is None
    assert tiny.states() == ["done", "done"]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "waiting"),
        (RuntimeError("NCCL communicator was aborted on rank 1"), "waiting"),
        (RuntimeError("[gloo/pair.cc:534] Connection closed by peer [10.0.0.2]:4111"), "waiting"),
        (RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed."), "waiting"),
        (OSError(errno.ESTALE, "Stale file handle"), "waiting"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "failed"),
        (ValueError("The image 7.png is damaged."), "failed"),
        (FloatingPointError("The loss is nan in epoch 2."), "failed"),
        (KeyError("a bug"), "failed"),
    ],
)
def test_the_machines_faults_are_lost_and_the_networks_failed(
    tiny: TinyRun, error: Exception, state: str
) -> None:
    tiny.cluster.fates = [raises(error)] * (1 + MAX_AGAIN)

    assert tiny.retrain() == FAILED

    assert tiny.states() == [state]
    tiny.cluster.fates = []
    assert tiny.retrain() is None
    assert tiny.states() == ["done"]


def test_a_training_that_diverges_has_failed_and_the_others_go_on(tiny: TinyRun) -> None:
    (tiny.run.folder / "mine.yaml").write_text(dump_recipe(changed(RECIPE, lr=1e30)))

    assert tiny.retrain(tiny.small, tiny.larger) == FAILED

    assert set(tiny.states()) == {"failed"}
    assert "The loss is nan" in str(tiny.run.record.trials()[0].cause)
    attempts = len(tiny.outcomes())
    assert tiny.retrain(tiny.small) == FAILED
    assert len(tiny.outcomes()) == attempts + 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"token_labels": Path("maps")}, "A recipe with token_labels needs"),
        ({"recipe": "volo_310e:d1"}, "A recipe with token_labels needs"),
        ({"recipe": "volo_310e:d1", "token_labels": Path("none")}, "of the family 'volo'"),
        ({"teacher": "timm:nothing"}, "timm knows no model 'nothing'"),
        ({"recipe": "nothing"}, "nothing"),
        ({"start": Path("nothing")}, "nothing"),
        ({"inherit": True}, "no trained supernet"),
        ({"taps": (9, 11)}, "has the size 9"),
        ({"devices": 33}, "got 33 devices"),
        ({"devices": 4}, "the devices that there are, 2, got --devices 4"),
        ({"img_size": 7}, "7"),
    ],
)
def test_what_was_asked_wrongly_is_refused_before_there_is_a_trial(
    tiny: TinyRun, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        tiny.retrain(**asked)

    assert tiny.run.record.trials() == ()
    assert tiny.outcomes() == []
    # Nothing is decoded either, but where the number of images counts.
    assert is_stored(tiny.run.folder / "data", "test") == ("devices" in asked)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"epochs": 0}, "--epochs is at least 1, got 0"),
        ({"devices": 0}, "--devices is at least 1, got 0"),
        ({"workers": -1}, "--workers is at least 0, got -1"),
        ({"img_size": 0}, "--img-size is at least 1, got 0"),
        ({"seeds": (0, -1)}, "A seed is a number from 0 .* got -1"),
        ({"seeds": (2**63,)}, "A seed is a number from 0 .* got 9223372036854775808"),
    ],
)
def test_numbers_out_of_their_range_are_one_message(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RetrainPlan(**asked)


def test_a_damaged_test_image_is_found_before_the_training_and_can_be_mended(
    tiny: TinyRun,
) -> None:
    image = tiny.source / "test" / "bee" / "2.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ValueError, match=r"2\.png"):
        tiny.retrain()

    assert tiny.run.record.trials() == ()
    image.write_bytes(whole)
    assert tiny.retrain() is None
    assert tiny.states() == ["done"]


def test_at_another_size_networks_are_tested_on_the_images_of_the_run(tiny: TinyRun) -> None:
    image = tiny.source / "test" / "bee" / "2.png"
    other = tiny.source / "train" / "bee" / "2.png"
    image.write_bytes(other.read_bytes())

    with pytest.raises(ValueError, match="must not change during a run"):
        tiny.retrain(img_size=16)

    assert tiny.run.record.trials() == ()


def test_a_damaged_label_map_is_found_before_the_training(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volo = changed(load_recipe("volo_310e:d1"), batch_size=8, shard_size=4)
    (tiny.run.folder / "mine.yaml").write_text(dump_recipe(volo))
    maps = tmp_path / "maps"
    for label in ("ant", "bee"):
        (maps / label).mkdir(parents=True)
        for number in range(12):
            found = torch.stack([torch.ones(2, 2, 2), torch.zeros(2, 2, 2)]).half()
            torch.save(found, maps / label / f"{number}.pt")
    # The networks are of another family: that is what is said first.
    with pytest.raises(ValueError, match="family 'volo'"):
        tiny.retrain(token_labels=maps)
    monkeypatch.setattr(wanted, "check_network", lambda *_, **__: None)
    whole = (maps / "bee" / "3.pt").read_bytes()
    for broken, said in (
        (whole[:40], r"3\.pt cannot be read"),
        (b"", r"3\.pt cannot be read"),
        (None, r"needs a label map; there is no .*3\.pt"),
    ):
        if broken is None:
            (maps / "bee" / "3.pt").unlink()
        else:
            (maps / "bee" / "3.pt").write_bytes(broken)
        with pytest.raises(ValueError, match=said):
            tiny.retrain(token_labels=maps)
    torch.save(
        torch.stack([torch.ones(2, 2, 2), torch.full((2, 2, 2), 7.0)]), maps / "bee" / "3.pt"
    )
    with pytest.raises(ValueError, match=r"0 to 1; .*3\.pt has 7 to 7"):
        tiny.retrain(token_labels=maps)
    assert tiny.run.record.trials() == ()


def test_another_recipe_of_the_same_name_is_another_training(tiny: TinyRun) -> None:
    tiny.retrain()
    (tiny.run.folder / "mine.yaml").write_text(dump_recipe(changed(RECIPE, lr=1e-5)))

    tiny.retrain()
    tiny.retrain()

    first, second = tiny.run.record.trials()
    assert first.fidelity == "retrain-mine-3e"
    assert second.fidelity.startswith("retrain-mine-3e-")
    assert (first.state, second.state) == ("done", "done")
    assert len(tiny.outcomes()) == 2
    folders = sorted((tiny.run.folder / "retrain").glob("*/model.safetensors"))
    assert len({path.read_bytes() for path in folders}) == 2
    # The first one is still there, under its name.
    (tiny.run.folder / "mine.yaml").write_text(dump_recipe(RECIPE))
    tiny.retrain()
    assert len(tiny.outcomes()) == 2


def test_another_start_of_the_same_name_is_another_training(tiny: TinyRun, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    for seed in (1, 2, 2):
        torch.manual_seed(seed)
        save_file(build_subnet(SMALL).state_dict(), start)
        tiny.retrain(start=start)

    assert [trial.state for trial in tiny.run.record.trials()] == ["done", "done"]
    assert len(tiny.outcomes()) == 2


def test_a_start_that_is_no_weights_or_of_another_network_is_refused(
    tiny: TinyRun, tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"start\.safetensors cannot be read as weights"):
        tiny.retrain(start=start)
    other = replace(SMALL, stages=(replace(SMALL.stages[0], mixers=(SMALL.stages[0].mixers[0],)),))
    save_file(build_subnet(other).state_dict(), start)
    with pytest.raises(ValueError, match="the same network"):
        tiny.retrain(start=start)
    assert tiny.run.record.trials() == ()


def test_the_same_network_or_seed_twice_is_one(tiny: TinyRun) -> None:
    ids = (tiny.small, tiny.larger, tiny.small)

    assert tiny.retrain(*ids, seeds=(0, 1, 0)) is None

    found = [(trial.architecture_id, trial.seed) for trial in tiny.run.record.trials()]
    assert found == [(tiny.small, 0), (tiny.small, 1), (tiny.larger, 0), (tiny.larger, 1)]
    assert set(tiny.states()) == {"done"}


def test_a_recipes_name_leads_nowhere(tiny: TinyRun, tmp_path: Path) -> None:
    named = changed(RECIPE, name="../../../x [red]\n" + "y" * 300, epochs=1)
    (tiny.run.folder / "mine.yaml").write_text(dump_recipe(named))
    before = {path.name for path in tmp_path.iterdir()}

    assert tiny.retrain() is None

    assert {path.name for path in tmp_path.iterdir()} == before
    (folder,) = (path for path in (tiny.run.folder / "retrain").iterdir() if path.is_dir())
    assert "/" not in folder.name
    assert folder.parent == tiny.run.folder / "retrain"


def test_a_group_waits_for_devices_that_are_gone_and_is_not_charged(tiny: TinyRun) -> None:
    tiny.cluster.fates = [dies, hangs]
    looks = iter(range(100))

    class Shrinking(type(tiny.cluster)):  # type: ignore[misc]
        @property
        def devices(self) -> int:
            return 1 if tiny.outcomes() and next(looks) < 5 else 2

        @devices.setter
        def devices(self, count: int) -> None:
            pass

    tiny.cluster.__class__ = Shrinking
    tiny.cluster.fates = [dies, hangs, *[dies] * 6]

    assert tiny.retrain(devices=2) == FAILED
    assert tiny.outcomes() == [(1, "lost", 2.0)] * 4


@pytest.mark.parametrize(("stopped_by", "status"), [(FAILED, 1), (FULL_DISK, 1), ("SIGINT", 130)])
def test_the_exit_status_says_that_something_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_by: str, status: int
) -> None:
    write_run(tmp_path / "run")
    monkeypatch.setattr(queue, "retrain_members", lambda *_, **__: stopped_by)
    monkeypatch.setattr("search.report.write_report", lambda *_: True)

    done = CliRunner().invoke(app, ["retrain", str(tmp_path / "run"), "--arch", "1"])

    assert done.exit_code == status
    assert f"Stopped by {stopped_by}. The same command goes on." in done.output


def test_only_a_failed_trial_is_let_wait_again(tmp_path: Path) -> None:
    with Record.create(tmp_path / "record.db") as record:
        number = record.add_architecture(LARGER, params=1, macs=1)
        states = []
        for seed, outcome in enumerate(("done", "failed", "lost")):
            trial = record.add_trial(number, fidelity="x", seed=seed, origin="x")
            attempt = record.start_attempt("x", devices=1, trial_id=trial)
            values = Measured(top1=1.0) if outcome == "done" else None
            record.finish_attempt(attempt, outcome=outcome, measured=values, cause="c")  # type: ignore[arg-type]
            record.retry(trial)
            states.append(record.trial(trial).state)
    assert states == ["done", "waiting", "waiting"]


SHIPPED = [
    size
    for name in config_names("recipes")
    for size in (name, *(f"{name}:{size}" for size in load_recipe(name).sizes))
]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_take_up_to_64_devices_or_a_pair_of_images_for_each(name: str) -> None:
    recipe = load_recipe(name)
    for devices in range(1, 65):
        if devices > recipe.batch_size // 2:
            with pytest.raises(ValueError, match=f"got {devices} devices"):
                with_shards_for(recipe, 100_000, devices)
            continue
        found = with_shards_for(recipe, 100_000, devices)
        shards = count_shards(100_000, found, devices)
        # All of a batch is learnt from, in equal shards, and every device has some of it.
        assert shards * (found.shard_size or found.batch_size) == recipe.batch_size
        assert shards >= devices
        if devices <= recipe.num_shards:
            assert found == recipe


@pytest.mark.parametrize(("shard_size", "words"), [(3, "1 shard"), (1, "3 shards")])
def test_a_batch_that_cannot_be_shared_says_what_it_has(shard_size: int, words: str) -> None:
    recipe = changed("micro", batch_size=3, shard_size=shard_size, mixup=0.0, cutmix=0.0)
    with pytest.raises(ValueError, match=rf"a batch of 3, got 5 devices and {words}\."):
        with_shards_for(recipe, 100, 5)


def test_devices_that_do_not_divide_a_batch_share_all_of_it(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, *noise(44, 8))
    recipe = changed(RECIPE, batch_size=16, shard_size=4)
    loaders = [
        TrainLoader(data.split("train"), data, recipe, rank=rank, world_size=3) for rank in range(3)
    ]

    for steps in zip(*(loader.epoch(0, 0) for loader in loaders), strict=True):
        assert [len(shards) for shards in steps] == [2, 1, 1]
        assert sum(shard.share for shards in steps for shard in shards) == pytest.approx(1.0)


def test_a_finished_training_of_other_images_is_not_taken_for_this_one(
    tiny: TinyRun, tmp_path: Path
) -> None:
    options = RetrainOptions(out=tmp_path / "out", threads=1)
    data = tiny.run.data()
    retrain(SMALL, data, RECIPE, options)
    torch.manual_seed(0)
    other = dict(build_subnet(SMALL).state_dict())
    before = load_file(options.out / "model.safetensors")

    for changed_data, start in ((replace(data, fingerprint="other"), None), (data, other)):
        with pytest.raises(ValueError, match="other weights, images or label maps"):
            retrain(SMALL, changed_data, RECIPE, replace(options, start=start))

    after = load_file(options.out / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_what_holds_a_training_up_is_said_once(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "starvation", lambda report: "reading is slow")
    looks: list[int] = []
    epochs, finished = queue._epochs, tiny.cluster.take_finished

    def growing(out: Path) -> list[EpochReport]:
        """Let epochs be seen one after the other, each by two looks."""
        return epochs(out)[: len(looks) // 2]

    def slowly(pending: list[Any]) -> list[Any]:
        if not looks:
            retrain(SMALL, tiny.run.data(), RECIPE, RetrainOptions(out=folder, threads=1))
        looks.append(1)
        return [] if len(looks) < 20 else finished(pending)

    folder = tiny.run.folder / "retrain" / f"{tiny.small}-mine-3e-s0"
    monkeypatch.setattr(training_queue, "take_finished", slowly)
    monkeypatch.setattr(queue, "_epochs", growing)
    tiny.cluster.fates = [lambda job: (None, "The worker died unexpectedly.")] * (1 + MAX_AGAIN)

    assert tiny.retrain() == FAILED

    said = tiny.out.getvalue()
    assert said.count("reading is slow") == 1
    assert [said.count(f"epoch {n} of 3") for n in (1, 2, 3)] == [1, 1, 1]
