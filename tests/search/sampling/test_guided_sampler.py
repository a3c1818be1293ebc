"""Laws of the guided sampler: no repeats, constraints, seeds, resuming, cost, learning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from search.results.dominance import hypervolume
from search.sampling.asking import Asking
from search.sampling.design_space import (
    Choose,
    DesignSpace,
    Draw,
    draw_random,
    every_draw,
    from_unit,
    to_unit,
)
from search.sampling.gaussian_process import Posterior, Scales, _loss
from search.sampling.guided_sampler import GuidedSampler
from search.sampling.improvement import expected_improvement, free_boxes
from search.sampling.learned_space import learn_space

LETTERS = CategoricalDistribution(("a", "b", "c"))


def walk(choose: Choose) -> tuple[Any, ...]:
    """Five letters; a "c" in the first two places has a number: 4^2 * 3^3 designs."""
    word = [choose(f"letter{place}", LETTERS) for place in range(5)]
    for place in range(2):
        if word[place] == "c":
            word.append((place, choose(f"number{place}", IntDistribution(1, 2))))
    return tuple(word)


def losses_of(word: tuple[Any, ...]) -> tuple[float, float, float]:
    """Weigh letters so that few are best at both; the third loss counts the numbers."""
    good = sum((place + 1) * "abc".index(word[place]) for place in range(5))
    pairs = sum(a == b for a, b in itertools.pairwise(word[:5]))
    numbers = sum(number for _, number in word[5:])
    return float(20 - good + pairs), float(good + numbers), float(pairs + numbers)


def space(is_allowed: Callable[[Any], bool] = lambda word: True) -> DesignSpace[Any]:
    return DesignSpace(walk=walk, key=lambda word: word, is_allowed=is_allowed)


def asking(num_losses: int = 2, *, seed: int = 0, **options: Any) -> Asking[Any]:
    return Asking(space(), sampler="guided", seed=seed, num_losses=num_losses, **options)


def search(asks: Asking[Any], count: int, num_losses: int = 2) -> list[Draw[Any]]:
    found = []
    for _ in range(count):
        one = asks.ask()
        if one is None:
            break
        asks.tell(one, losses_of(one.design)[:num_losses])
        found.append(one)
    return found


@pytest.mark.parametrize("num_losses", [1, 2, 3])
def test_every_design_is_proposed_once_and_then_nothing(num_losses: int) -> None:
    short = space(lambda word: word[2:5] == ("a", "b", "c"))
    asks = Asking(short, sampler="guided", seed=0, num_losses=num_losses)
    found = search(asks, 1000, num_losses)
    assert len({one.key for one in found}) == len(found) == 4 * 4


def test_all_walks_are_counted_once() -> None:
    words = [one.design for one in every_draw(space())]
    assert len(set(words)) == len(words) == 4 * 4 * 3**3


def test_no_proposal_breaks_a_constraint_and_none_costs_a_trial() -> None:
    allowed = space(lambda word: word[0] != "a" and word.count("b") >= 2)
    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=GuidedSampler(seed=1, space=allowed)
    )
    for _ in range(30):
        word = ask(study)
        assert allowed.is_allowed(word)
    assert len(study.trials) == 30


def ask(study: optuna.Study, *, fail: Callable[[Any], bool] = lambda word: False) -> Any:
    """Run one trial of a plain Optuna study."""
    trial = study.ask()

    def choose(name: str, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return trial.suggest_categorical(name, distribution.choices)
        assert isinstance(distribution, IntDistribution)
        return trial.suggest_int(name, distribution.low, distribution.high)

    word = walk(choose)
    if fail(word):
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, losses_of(word)[: len(study.directions)])
    return word


def test_the_seed_decides_everything() -> None:
    first, again, other = ([one.key for one in search(asking(seed=seed), 24)] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_resumed_study_goes_on_with_new_designs() -> None:
    first = search(asking(), 20)
    known = [(one, losses_of(one.design)[:2]) for one in first]
    resumed = search(asking(known=known), 20)
    assert {one.key for one in first}.isdisjoint(one.key for one in resumed)
    # Without what is known the same seed would begin as before.
    assert resumed[0].key != first[0].key


def test_designs_that_failed_are_not_tried_again_and_their_neighbours_less_often() -> None:
    def crashes(word: Any) -> bool:
        return bool(word[4] == "c")

    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=GuidedSampler(seed=0, space=space())
    )
    words = [ask(study, fail=crashes) for _ in range(50)]
    assert len(set(words)) == 50
    # A third of all designs crash, and they would be the best.
    assert sum(map(crashes, words[25:])) < 25 / 3


def test_a_study_where_all_failed_still_gets_proposals() -> None:
    study = optuna.create_study(sampler=GuidedSampler(seed=0, space=space()))
    words = [ask(study, fail=lambda word: True) for _ in range(20)]
    assert len(set(words)) == 20


def test_designs_under_way_are_not_proposed_again() -> None:
    asks = asking()
    search(asks, 15)
    waiting = [asks.ask() for _ in range(12)]
    assert len({one.key for one in waiting if one is not None}) == 12


def test_a_plain_study_learns_the_conditional_space_and_does_not_repeat() -> None:
    study = optuna.create_study(directions=["minimize"] * 2, sampler=GuidedSampler(seed=0))
    words = [ask(study) for _ in range(60)]
    assert len(set(words)) == 60


def test_the_learned_walk_asks_for_what_applies() -> None:
    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    for _ in range(40):
        ask(study)
    learned = learn_space(study.trials)
    rng = np.random.default_rng(0)
    for _ in range(50):
        choices = draw_random(learned, rng).choices
        for place in range(2):
            assert (f"number{place}" in choices) == (choices[f"letter{place}"] == "c")


def test_maximising_is_minimising_the_negative() -> None:
    def best(direction: str, sign: float) -> list[Any]:
        study = optuna.create_study(
            directions=[direction], sampler=GuidedSampler(seed=0, space=space())
        )
        words = []
        for _ in range(30):
            trial = study.ask()
            word = walk(
                lambda name, d, trial=trial: (  # type: ignore[misc]
                    trial.suggest_categorical(name, d.choices)
                    if isinstance(d, CategoricalDistribution)
                    else trial.suggest_int(name, d.low, d.high)
                )
            )
            study.tell(trial, sign * losses_of(word)[0])
            words.append(word)
        return words

    assert best("minimize", 1.0) == best("maximize", -1.0)


def test_predictors_are_fitted_a_logarithmic_number_of_times() -> None:
    sampler = GuidedSampler(seed=0, space=space())
    asks = Asking(space(), sampler=sampler, seed=0, num_losses=2)
    search(asks, 100)
    # Each fit needs a tenth more trials than the one before; two losses.
    assert 2 <= sampler.num_fits <= 2 * (1 + math.log(100 / 8) / math.log(1.1))


def test_known_losses_need_no_predictor() -> None:
    known = DesignSpace(
        walk=walk, key=lambda word: word, known_losses=lambda word: (None, losses_of(word)[1])
    )
    fits = []
    for one in (space(), known):
        sampler = GuidedSampler(seed=0, space=one)
        search(Asking(one, sampler=sampler, seed=0, num_losses=2), 40)
        fits.append(sampler.num_fits)
    assert fits[0] == 2 * fits[1] > 0


def test_it_finds_the_front_sooner_than_random_search() -> None:
    words = [one.design for one in every_draw(space())]
    points = np.array([losses_of(word)[:2] for word in words])
    reference = points.max(axis=0) + 1.0

    def volume(sampler: str, seed: int) -> float:
        asks = Asking(space(), sampler=sampler, seed=seed, num_losses=2)
        found = np.array([losses_of(one.design)[:2] for one in search(asks, 40)])
        return hypervolume(found, reference) / hypervolume(points, reference)

    guided = [volume("guided", seed) for seed in range(3)]
    chance = [volume("random", seed) for seed in range(3)]
    assert np.mean(guided) > max(chance)


@pytest.mark.parametrize(
    "distribution",
    [
        IntDistribution(3, 11, step=2),
        IntDistribution(1, 16, log=True),
        FloatDistribution(0.5, 4.0, step=0.5),
        FloatDistribution(1e-3, 1.0, log=True),
        FloatDistribution(-2.0, 3.0),
        IntDistribution(4, 4),
    ],
)
def test_numbers_survive_scaling(distribution: BaseDistribution) -> None:
    for unit in np.linspace(0.0, 1.0, 23):
        value = from_unit(distribution, float(unit))
        assert distribution._contains(value)
        assert from_unit(distribution, to_unit(distribution, value)) == pytest.approx(value)


def test_the_gradient_of_the_fit_is_the_slope() -> None:
    rng = np.random.default_rng(0)
    rows, targets = rng.random((9, 5)), rng.standard_normal(9)
    groups = np.array([0, 0, 1, 2, 2])
    x = np.array([0.3, -0.4, 0.1, 0.2, -2.0])
    step = 1e-6
    slopes = [
        (_loss(x + e, rows, targets, groups)[0] - _loss(x - e, rows, targets, groups)[0])
        / (2 * step)
        for e in step * np.eye(5)
    ]
    np.testing.assert_allclose(_loss(x, rows, targets, groups)[1], slopes, rtol=1e-5)


def test_awaited_values_change_the_uncertainty_as_told_ones_do() -> None:
    rng = np.random.default_rng(1)
    rows, targets, groups = rng.random((8, 3)), rng.standard_normal(8), np.arange(3)
    scales = Scales(np.zeros(3), -1.0, -3.0)
    alone = Posterior(rows[:6], targets[:6], groups=groups, scales=scales).predict(rows)
    alone.await_value(6)
    alone.await_value(7)
    together = Posterior(rows, targets[:6], groups=groups, scales=scales).predict(rows)
    np.testing.assert_allclose(alone.deviation, together.deviation, rtol=1e-6)
    np.testing.assert_allclose(alone.mean, together.mean)


@pytest.mark.parametrize("num_losses", [1, 2, 3, 4])
def test_a_certain_improvement_is_the_hypervolume_that_it_adds(num_losses: int) -> None:
    rng = np.random.default_rng(num_losses)
    front, reference = rng.random((6, num_losses)), np.ones(num_losses)
    candidates = 1.2 * rng.random((20, num_losses))
    lower, upper = free_boxes(front, reference)
    gains = expected_improvement(candidates, np.zeros_like(candidates), lower=lower, upper=upper)
    before = hypervolume(front, reference)
    added = [hypervolume(np.vstack([front, one]), reference) - before for one in candidates]
    np.testing.assert_allclose(gains, added, atol=1e-9)


def test_an_expected_improvement_is_the_mean_over_draws() -> None:
    rng = np.random.default_rng(5)
    front, reference = rng.random((4, 2)), np.ones(2)
    mean, deviation = np.array([[0.4, 0.3]]), np.array([[0.2, 0.3]])
    lower, upper = free_boxes(front, reference)
    gain = expected_improvement(mean, deviation, lower=lower, upper=upper)[0]
    draws = mean + deviation * rng.standard_normal((4000, 2))
    before = hypervolume(front, reference)
    added = [hypervolume(np.vstack([front, one]), reference) - before for one in draws]
    assert gain == pytest.approx(np.mean(added), abs=4 * np.std(added) / math.sqrt(4000))
