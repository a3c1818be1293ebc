"""Optuna's own tests of what a sampler is, on `GuidedSampler`.

`SingleOnlyMultiObjectiveSamplerTestCase` is for samplers that refuse several objectives: not ours.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from search.sampling.guided_sampler import GuidedSampler

# Optuna calls `set_trial_system_attr` and its like experimental.
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


class TestGuidedSampler(
    BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase
):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return GuidedSampler


def bowl(trial: optuna.Trial) -> float:
    """Return a loss with its least value, 0, at (2, -1, "a")."""
    x, y = trial.suggest_float("x", -5, 5), trial.suggest_int("y", -4, 4)
    return (
        (x - 2) ** 2 + (y + 1) ** 2 + "abc".index(trial.suggest_categorical("z", ["a", "b", "c"]))
    )


def test_one_objective_is_minimised_far_below_what_chance_finds() -> None:
    study = optuna.create_study(sampler=GuidedSampler(seed=0))

    study.optimize(bowl, n_trials=60)

    # A random point is below .1 with a chance of 1/3 * 1/9 * .063, one of 60 with .13.
    assert study.best_value < 0.1


def test_what_is_enqueued_is_taken_and_the_rest_is_planned_for_it() -> None:
    study = optuna.create_study(sampler=GuidedSampler(seed=0))
    study.optimize(bowl, n_trials=50)
    for y in (4, -4):
        study.enqueue_trial({"y": y})

    study.optimize(bowl, n_trials=2)

    first, second = study.trials[-2:]
    assert (first.params["y"], second.params["y"]) == (4, -4)
    # The bowl is separable: its best x does not depend on y.
    assert abs(first.params["x"] - 2) < 1.5
    assert abs(second.params["x"] - 2) < 1.5


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_partly_fixed_sampler_plans_the_rest() -> None:
    study = optuna.create_study(sampler=GuidedSampler(seed=0))
    study.optimize(bowl, n_trials=50)
    study.sampler = optuna.samplers.PartialFixedSampler({"z": "c"}, study.sampler)

    study.optimize(bowl, n_trials=5)

    assert {trial.params["z"] for trial in study.trials[-5:]} == {"c"}
    assert min(trial.values[0] for trial in study.trials[-5:]) < 3


def test_trials_that_fail_or_are_pruned_are_not_tried_again() -> None:
    study = optuna.create_study(sampler=GuidedSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        value = bowl_of_integers(trial)
        if value > 20:
            raise optuna.TrialPruned
        if value > 12:
            raise ArithmeticError
        return value

    study.optimize(objective, n_trials=60, catch=ArithmeticError)

    asked = [tuple(trial.params.items()) for trial in study.trials]
    assert len(set(asked[1:])) == len(asked[1:])
    assert study.best_value == 0


def bowl_of_integers(trial: optuna.Trial) -> float:
    """Return a loss of 81 designs, 0 at (2, -1)."""
    return (trial.suggest_int("x", -4, 4) - 2) ** 2 + (trial.suggest_int("y", -4, 4) + 1) ** 2


def test_constraints_are_learned() -> None:
    study = optuna.create_study(sampler=GuidedSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        value = bowl_of_integers(trial)
        trial.set_constraint("x at most 0", trial.params["x"])
        return value

    study.optimize(objective, n_trials=40)

    allowed = [trial for trial in study.trials if trial.params["x"] <= 0]
    # x = 0 and y = -1 is the best that is allowed.
    assert min(trial.values[0] for trial in allowed) == 4
    assert len(allowed) > 24


def test_threads_do_not_propose_the_same_design_twice() -> None:
    study = optuna.create_study(sampler=GuidedSampler(seed=0))

    study.optimize(bowl_of_integers, n_trials=60, n_jobs=4)

    # The first four may be asked before the space is known.
    asked = [tuple(trial.params.items()) for trial in study.trials[4:]]
    assert len(set(asked)) == len(asked)


def optimise_shared(path: str, seed: int) -> None:
    storage = JournalStorage(JournalFileBackend(path))
    study = optuna.load_study(
        study_name="shared", storage=storage, sampler=GuidedSampler(seed=seed)
    )
    study.optimize(bowl_of_integers, n_trials=25)


def test_two_processes_share_a_storage(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    storage = JournalStorage(JournalFileBackend(path))
    study = optuna.create_study(study_name="shared", storage=storage)
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=optimise_shared, args=(path, seed)) for seed in (1, 2)]

    for process in both:
        process.start()
    for process in both:
        process.join()

    assert [process.exitcode for process in both] == [0, 0]
    assert len(study.trials) == 50
    assert study.best_value <= 1


def test_a_sampler_can_be_pickled_in_the_middle_of_a_study() -> None:
    study = optuna.create_study(sampler=GuidedSampler(seed=0))
    study.optimize(bowl_of_integers, n_trials=20)

    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    study.optimize(bowl_of_integers, n_trials=20)

    assert study.best_value == 0


def test_samplers_without_a_seed_differ() -> None:
    studies = [optuna.create_study(sampler=GuidedSampler()) for _ in range(2)]
    for study in studies:
        study.optimize(bowl, n_trials=3)

    assert studies[0].trials[0].params != studies[1].trials[0].params
