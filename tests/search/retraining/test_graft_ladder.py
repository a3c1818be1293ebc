"""The ladder of a graft's network, by hand: its parts, statistics, healing, and from scratch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from search.retraining.ladder import GRAFT_STEPS, take_steps
from search.retraining.wanted import assembled
from search.run_folder import open_run
from search.run_folder.folder import RunFolder
from searchspace.graft_space import replacements
from searchspace.mixers import DepthwiseConv
from supernet.network import Supernet, build_subnet
from supernet.recipes import load_recipe, with_epochs
from supernet.training import Accuracy, TrainingOptions, eval_batches, evaluate, recalibrate, train
from tests.tiny_graft import TEACHER, write_learned_graft
from tests.tiny_run import write_run


@pytest.fixture(scope="module")
def graft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_learned_graft(tmp_path_factory.mktemp("graft") / "run")


def a_member(run: RunFolder) -> int:
    """Return the id of a network with one convolution in the place of attention."""
    for trial in run.record.trials():
        found = replacements(TEACHER, trial.architecture)
        if len(found) == 1 and isinstance(found[0].mixer, DepthwiseConv):
            return trial.architecture_id
    raise AssertionError


@pytest.mark.timeout(600)
def test_each_step_is_what_it_says(graft: Path) -> None:
    with open_run(graft) as run:
        number, data = a_member(run), run.data()
        steps = {one.step: one for one in take_steps(run, number, epochs=1, seed=3)}
        assert tuple(steps) == GRAFT_STEPS
        search = list(eval_batches(data.split("search"), data, 100))
        calibration = [x for x, _ in eval_batches(data.split("train"), data, 256)][:8]
        recipe = with_epochs(load_recipe("heal"), 1)

        network = assembled(run, number)
        assert steps["assembled"].accuracy == evaluate(network, search, "cpu")
        recalibrate(network, calibration)
        assert steps["recalibrated"].accuracy == evaluate(network, search, "cpu")

        def trained(network: Supernet) -> Accuracy:
            options = TrainingOptions(
                train_split=data.split("train"),
                eval_split=data.split("search"),
                seed=3,
                teacher=run.mentor(),
            )
            return train(network, data, recipe, options).accuracy

        assert steps["healed"].accuracy == trained(assembled(run, number))
        torch.manual_seed(3)
        fresh = build_subnet(run.architecture(number), recipe.drop_path)
        assert steps["retrained"].accuracy == trained(fresh)
        taught = f"lr {recipe.lr:g}, taught by a teacher"
        assert steps["healed"].about == f"1 epoch of heal from its parts, {taught}"
        assert steps["retrained"].about == f"1 epoch of heal from scratch, {taught}"


def test_nothing_replaced_is_the_teacher(graft: Path) -> None:
    with open_run(graft) as run:
        (own,) = [t for t in run.record.trials() if t.key == TEACHER.key]
        data = run.data()
        network = run.teacher.network()
        expected = evaluate(network, list(eval_batches(data.split("search"), data, 100)), "cpu")
        steps = ("assembled", "recalibrated")
        for step in take_steps(run, own.architecture_id, steps=steps, epochs=1):
            assert step.accuracy == expected


def test_steps_of_another_kind_of_run_are_refused(graft: Path, tmp_path: Path) -> None:
    with (
        open_run(graft) as run,
        pytest.raises(ValueError, match=r"'inside'. The steps of a graft are assembled, recalib"),
    ):
        list(take_steps(run, a_member(run), steps=("inside",), epochs=1))
    from search.record.record import Record

    folder = write_run(tmp_path / "proxy")
    with Record.open(folder / "record.db") as record:
        record.set_meta("settings", {**record.get_meta("settings"), "strategy": "proxy"})
    with (
        open_run(folder) as run,
        pytest.raises(ValueError, match=r"has neither: its strategy is proxy. Train"),
    ):
        list(take_steps(run, 1, epochs=1))


def test_a_graft_without_parts_or_with_another_teacher_is_refused(tmp_path: Path) -> None:
    folder = write_learned_graft(tmp_path / "run")
    weights = folder / "teacher" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with (
        open_run(folder) as run,
        pytest.raises(ValueError, match=r"model.safetensors has other weights.*Restore"),
    ):
        list(take_steps(run, a_member(run), epochs=1))
    content[-1] ^= 1
    weights.write_bytes(content)
    with open_run(folder, write=True) as run:
        run.state.library_done = 0
    with (
        open_run(folder) as run,
        pytest.raises(ValueError, match="have not learned yet"),
    ):
        list(take_steps(run, a_member(run), epochs=1))
