"""A whole graft, in this process, on a virtual clock: killed anywhere, it goes on to the same bits.

The teacher, its parts and the networks of them are real and tiny; only their seconds pass on the
clock.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from search.grafting import ESTIMATES, KL, graft_scores, is_assembled
from search.phases import grafting, saves
from search.plan import PHASES, StepTimes
from search.record import Measured, Trial
from search.results import SUPERNET, is_trained_alone
from search.run_folder import RunSettings, write_teacher
from search.scheduling import BudgetSpent, TrialTask
from search.trust import ranking, report_of
from search.trust.ranking import TRAINING
from search.workers.graft_worker import GRAFT_WORK, GraftJudge, GraftWorker, heal
from searchspace.architecture import Architecture, Stage
from searchspace.graft_space import replacements
from searchspace.mixers import WindowAttention
from searchspace.single_mixer import is_single_mixer
from supernet.grafting import load_library
from supernet.network import build_subnet
from supernet.training import digest_of
from tests.local_run import Clock, LocalRun

WINDOW = WindowAttention(window_size=4, num_heads=2)
TEACHER = Architecture(
    img_size=16,
    patch_size=4,
    num_classes=2,
    stages=(Stage(dim=8, mixers=(WINDOW,), mlp_ratio=1), Stage(dim=16, mixers=(WINDOW,))),
)
STEP, JUDGE, EPOCH = 0.2, 0.1, 0.6


def graft_work(clock: Clock) -> Any:
    """The real work, whose seconds pass on a clock."""

    class Worker(GraftWorker):
        def measure(self) -> StepTimes:
            clock.work_for(1.0)
            return StepTimes(
                supernet_step=STEP,
                trial_steps=((100_000, EPOCH), (900_000, EPOCH)),
                judge=JUDGE,
                steps_per_epoch=1,
                supernet_batch=64,
            )

        def train(self, steps: int) -> tuple[int, float]:
            clock.work_for(STEP)
            found = super().train(min(steps, 1))
            if found[0] % 3 == 0:  # a kill loses up to two steps
                self.save()
            return found

    class Judge(GraftJudge):
        def judge(
            self, architectures: Iterable[Architecture], by: str
        ) -> list[tuple[Measured | None, str | None]]:
            clock.work_for(JUDGE * len(list(architectures)))
            return super().judge(architectures, by)

    def train_alone(
        job: Any, task: TrialTask, threads: int, on_epoch: Callable[[int], None]
    ) -> Measured | None:
        clock.work_for(EPOCH * task.epochs)
        return heal(job, task, threads, on_epoch)

    return replace(GRAFT_WORK, supernet_worker=Worker, judge_worker=Judge, train_alone=train_alone)


def image_folder(folder: Path) -> Path:
    """Two classes of noise, one of them brighter."""
    rng = np.random.default_rng(0)
    for number in range(72):
        split, kind = ("test", "train")[number < 60], ("dark", "bright")[number % 2]
        (folder / split / kind).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (16, 16, 3)) + 127 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / split / kind / f"{number}.png")
    return folder


def settings_of(folder: Path, budget: str) -> RunSettings:
    torch.manual_seed(0)
    state = build_subnet(TEACHER).state_dict()
    about = {"name": "a teacher", "fingerprint": digest_of(state), "class_names": []}
    teacher = folder / "a teacher"
    write_teacher(teacher, TEACHER, state, about | {"mean": [0.5] * 3, "std": [0.3] * 3})
    return RunSettings(
        data=str(image_folder(folder / "images")),
        budget=budget,
        strategy="graft",
        graft_from="a teacher",
        teacher=str(teacher),
        img_size=16,
    )


def graft_of(folder: Path, patch: pytest.MonkeyPatch, budget: str = "50cpu-seconds") -> LocalRun:
    folder.mkdir(exist_ok=True)
    run = LocalRun(folder / "run", settings_of(folder, budget), patch)
    run.work = graft_work(run.clock)
    teacher = run.folder / "teacher"
    teacher.mkdir()
    for file in Path(run.settings.teacher).iterdir():
        (teacher / file.name).write_bytes(file.read_bytes())
    patch.setattr(grafting, "MAX_LIBRARY_EPOCHS", 16)  # steps here
    patch.setattr(grafting, "RESCHEDULE_SHARE", math.inf)  # the pace is of the wall clock
    patch.setattr(grafting, "call_each", _call_each)
    patch.setattr(grafting, "call_all", lambda actors, *rest, **more: [_call(*actors, *rest)])
    return run


def _call(actor: Any, method: str, *arguments: Any, **_: Any) -> Any:
    return getattr(actor, method)(*arguments)


def _call_each(actors: list[Any], method: str, arguments: list[Any], **_: Any) -> list[Any]:
    return [_call(actor, method, *own) for actor, own in zip(actors, arguments, strict=True)]


def trials_of(run: LocalRun) -> tuple[Trial, ...]:
    with run.record() as record:
        return record.trials()


def results_of(run: LocalRun) -> dict[tuple[str, str], Measured]:
    return {
        (one.key, one.fidelity): replace(one.measured, seconds=0.0)
        for one in trials_of(run)
        if one.state == "done"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    with pytest.MonkeyPatch.context() as patch:
        run = graft_of(tmp_path_factory.mktemp("whole"), patch)
        assert run.enter() == "done"
        return run


def test_a_graft_takes_all_its_phases_and_keeps_its_budget(whole: LocalRun) -> None:
    with whole.record() as record:
        spent = record.spent_by_phase()
        assert set(spent) == {"measure", "library", "score", "trust", "search", "promote"}
        assert record.spent(PHASES) <= 50 + EPOCH
        trials = record.trials()
        report = report_of(record, seed=0, strategy="graft")
        (error,) = whole_errors(record)
    assert error == 0.0
    assembled = [one for one in trials if is_assembled(one)]
    # The teacher with nothing replaced says what the teacher says.
    (teacher,) = [one for one in assembled if one.architecture == TEACHER]
    assert teacher.measured.kl == 0.0
    assert min(one.measured.kl for one in assembled) == 0.0
    assert any(one.origin == "search" for one in assembled)
    assert any(is_trained_alone(one.fidelity) and one.origin == "promote" for one in trials)
    assert report is not None
    names = {estimator.name for estimator in report.estimators}
    assert {SUPERNET, *ESTIMATES, KL, "params", "macs", "nwot"} <= names


def whole_errors(record: Any) -> list[float]:
    from search.run_folder import RunState

    return list(RunState(record).extraction_errors.values())


def test_every_part_is_scored_alone_and_no_network_twice(whole: LocalRun) -> None:
    trials = trials_of(whole)
    scores = graft_scores(trials, TEACHER)
    from searchspace.graft_space import graft_space, offered_replacements

    assert set(scores.singles) == set(offered_replacements(graft_space(TEACHER), TEACHER))
    assert scores.pairs
    names = [(one.key, one.fidelity, one.seed) for one in trials]
    assert len(set(names)) == len(names)
    assert any(len(replacements(TEACHER, one.architecture)) > 2 for one in trials)


@pytest.mark.parametrize("after", [2.3, 6.0, 17.0])
def test_killed_anywhere_it_goes_on_to_the_same_bits(
    after: float, whole: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = graft_of(tmp_path, monkeypatch)
    assert run.enter(kill_after=after) == "killed"
    assert run.enter() == "done"
    one, two = (load_library([folder.folder / "library" / "0"]) for folder in (whole, run))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    theirs, ours = results_of(whole), results_of(run)
    both = theirs.keys() & ours.keys()
    assert len(both) > len(theirs) / 2
    # Healing's lengths follow the budget that is left; what is equally long is equal. Kernels sum
    # in another order where memory lies otherwise, so that logits may differ by rounding.
    for name in both:
        found, expected = theirs[name].to_json(), ours[name].to_json()
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), name
    with run.record() as record:
        assert record.spent(PHASES) <= 50 + EPOCH
        open_attempts = [row for row in record.ledger() if row[8] is None]
        held = [row for row in record.ledger() if row[1] == "score" and row[4]]
    assert not open_attempts
    # What is scored needs no judges again: killed behind that phase, it is held once.
    assert len(held) == 1 or after < 17


def test_where_nothing_ranks_the_least_sums_are_healed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that knows nothing left the cheap half of such a front empty."""
    monkeypatch.setattr(
        ranking, "choose_of_graft", lambda _: (TRAINING, "healed 5 healed networks")
    )
    monkeypatch.setattr(grafting, "NUM_LIMITS", 6)
    run = graft_of(tmp_path, monkeypatch)
    assert run.enter(kill_after=26.0) == "killed"
    assert run.enter() == "done"
    trials = trials_of(run)
    chosen = [one.key for one in trials if is_assembled(one) and one.origin == "search"]
    healed = [
        one.key
        for one in trials
        if is_trained_alone(one.fidelity) and one.origin in ("search", "promote")
    ]
    assert len(chosen) > 2
    singles = [one.key for one in trials if is_single_mixer(one.architecture)]
    begun = [key for key in dict.fromkeys(healed) if key not in singles]
    assert len(begun) > len(chosen)
    wanted = [key for key in chosen if key not in singles]
    assert begun[: len(wanted)] == wanted


def test_a_graft_that_is_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = graft_of(tmp_path, monkeypatch)
    ends = [run.enter(stop_after=9.0) for _ in range(9)]
    assert ends[0] == "stopped"
    assert ends[-1] == "done"


def test_slow_first_steps_do_not_shorten_what_the_parts_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device the first steps compile kernels: here each of four takes a second, not .2."""
    run = graft_of(tmp_path, monkeypatch)
    taken: list[float] = []

    class Worker(run.work.supernet_worker):  # type: ignore[misc, name-defined]
        def train(self, steps: int) -> tuple[int, float]:
            run.clock.work_for(0.8 if len(taken) < 4 else 0.0)
            taken.append(run.clock.now)
            return super().train(steps)

    run.work = replace(run.work, supernet_worker=Worker)
    monkeypatch.setattr(saves, "time", SimpleNamespace(monotonic=run.clock))
    monkeypatch.setattr(grafting, "CALL_SECONDS", STEP)
    monkeypatch.setattr(grafting, "RESCHEDULE_SHARE", 0.1)
    monkeypatch.setattr(grafting, "MAX_LIBRARY_EPOCHS", 64)  # steps here
    run.enter()
    share = 0.3 * 50
    assert len(taken) > 0.6 * share / STEP
    with run.record() as record:
        assert record.spent_by_phase()["library"] < 1.1 * share


def test_a_library_that_is_gone_is_said_before_anything_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = graft_of(tmp_path, monkeypatch)
    assert run.enter(kill_after=17.0) == "killed"
    with run.record() as record:
        record.close_orphans()
        spent = record.spent(PHASES)
    shutil.rmtree(run.folder / "library")
    with pytest.raises(ValueError, match=r"cannot be read \(there is none\)"):
        run.enter()
    with run.record() as record:
        assert record.spent(PHASES) == spent


def test_images_of_other_classes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from search.run_folder import read_teacher
    from supernet.data import prepare_data

    settings = settings_of(tmp_path, "50cpu-seconds")
    images = prepare_data(settings.data, img_size=16, folder=tmp_path / "data")
    teacher = read_teacher(Path(settings.teacher))
    assert teacher.seen_by(images).mean == (0.5, 0.5, 0.5)
    others = replace(teacher, class_names=("cat", "dog"))
    with pytest.raises(ValueError, match=r"keeps the classes.*cat, dog.*--start"):
        others.seen_by(images)


def test_parts_that_cannot_learn_on_are_judged_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = graft_of(tmp_path, monkeypatch)
    assert run.enter(kill_after=3.0) == "killed"
    with run.record() as record:
        record.close_orphans()
        attempt = record.start_attempt("library", devices=1)
        # A start takes a second here, as measuring did: what is left pays for one, not for two.
        run.clock.work_for(50 - 1.5 - record.spent(PHASES))
        record.finish_attempt(attempt, outcome="interrupted")
    learned = load_library([run.folder / "library" / "0"])

    with suppress(BudgetSpent):
        assert run.enter() == "done"

    found = load_library([run.folder / "library" / "0"])
    assert all(torch.equal(value, found[name]) for name, value in learned.items())
    assert [one for one in trials_of(run) if one.fidelity == SUPERNET and one.state == "done"]
    with run.record() as record:
        assert record.spent(PHASES) <= 50 + EPOCH
