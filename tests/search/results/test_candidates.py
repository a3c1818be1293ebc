"""Candidates and the front: one fidelity, honest intervals, stable JSON."""

from __future__ import annotations

import json
import math

import pytest
from scipy import stats

from search.record.record import Trial
from search.results import LaterOrder
from search.results.candidates import (
    add_forecasts,
    add_probabilities,
    candidate_losses,
    candidates,
    front,
    judged_at,
    later_order,
    passed_over,
    retrained,
    shown_fidelity,
    to_json,
    wilson_interval,
)
from searchspace.architecture import Architecture
from tests.tiny_trials import NUM_IMAGES, network, trial


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (7, 9), (355, 360), (50, 50)])
def test_the_interval_of_one_training_is_wilsons(correct: int, total: int) -> None:
    (candidate,) = candidates([trial(1, correct=correct, total=total)], fidelity="train-3e")

    expected = stats.binomtest(correct, total).proportion_ci(method="wilson")

    assert candidate.low == pytest.approx(100 * expected.low, abs=1e-4)
    assert candidate.high == pytest.approx(100 * expected.high, abs=1e-4)
    assert (candidate.top1, candidate.num_seeds) == (100 * correct / total, 1)


@pytest.mark.parametrize("num_seeds", [2, 3, 13])
def test_seeds_are_averaged_and_their_spread_widens_the_interval(num_seeds: int) -> None:
    correct = [150 + seed % 5 for seed in range(num_seeds)]
    trials = [trial(1, correct=right, seed=seed) for seed, right in enumerate(correct)]

    (candidate,) = candidates(trials, fidelity="train-3e")

    top1s = [100 * right / NUM_IMAGES for right in correct]
    mean = sum(top1s) / num_seeds
    image_low, image_high = wilson_interval(mean / 100 * NUM_IMAGES, NUM_IMAGES)
    seed_low, _ = stats.t.interval(0.95, num_seeds - 1, loc=mean, scale=stats.sem(top1s))
    assert candidate.top1 == pytest.approx(mean)
    assert candidate.num_seeds == num_seeds
    assert mean - candidate.low == pytest.approx(
        math.hypot(mean - image_low, mean - seed_low), rel=1e-5
    )
    assert candidate.high > image_high


def test_the_spread_between_seeds_is_that_of_all_networks_with_several() -> None:
    repeated = [trial(1, correct=150 + 4 * seed, seed=seed) for seed in range(3)]
    once = trial(2, correct=154)

    alone = candidates([once], fidelity="train-3e")[0]
    several, single = candidates([*repeated, once], fidelity="train-3e")

    assert single.high - single.low > several.high - several.low > alone.high - alone.low


def test_equal_results_have_equal_candidates_in_any_order_of_seeds() -> None:
    trials = [trial(1, correct=150, seed=0), trial(1, correct=156, seed=1)]

    (forward,) = candidates(trials, fidelity="train-3e")
    (backward,) = candidates(trials[::-1], fidelity="train-3e")

    assert forward == backward


def test_only_finished_trials_of_the_fidelity_count() -> None:
    trials = [
        trial(1, correct=190, fidelity="supernet"),
        trial(2, correct=10),
        trial(3, correct=0, state="failed"),
        trial(4, correct=199, fidelity="retrain-micro-9e"),
    ]

    assert [c.id for c in front(trials, fidelity="train-3e")] == [2]


@pytest.mark.parametrize(
    ("fidelities", "expected"),
    [
        (("supernet", "train-9e", "train-10e", "retrain-micro-99e"), "train-10e"),
        (("retrain-micro-99e", "supernet"), "supernet"),
    ],
)
def test_the_shown_fidelity_is_the_longest_training_below_retraining(
    fidelities: tuple[str, ...], expected: str
) -> None:
    trials = [trial(1, correct=1, fidelity=fidelity) for fidelity in fidelities]
    trials.append(trial(2, correct=1, fidelity="train-99e", state="failed"))

    assert shown_fidelity(trials) == expected


def run_with(*, judged: int, trust: int = 0, arrived: int = 0, open_: int = 0) -> list[Trial]:
    """Make the trials of a run: by the supernet, of the trust phase, promoted, on their way."""
    trials = [trial(n, correct=150, fidelity="supernet", origin="search") for n in range(judged)]
    numbers = iter(range(judged))
    trials += [trial(next(numbers), correct=100, origin="trust") for _ in range(trust)]
    trials += [trial(next(numbers), correct=180) for _ in range(arrived)]
    return trials + [trial(next(numbers), correct=0, state="waiting") for _ in range(open_)]


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        (run_with(judged=20, trust=1, open_=2), "supernet"),
        (run_with(judged=20, trust=5), "supernet"),
        (run_with(judged=20, trust=1, arrived=2, open_=1), "supernet"),
        (run_with(judged=20, trust=1, arrived=3, open_=4), "supernet"),
        (run_with(judged=20, trust=1, arrived=3, open_=2), "train-3e"),
        (run_with(judged=20, arrived=3), "train-3e"),
        # All that the supernet knows was trained: nothing is lost.
        (run_with(judged=2, trust=2), "train-3e"),
        (run_with(judged=4, trust=2, arrived=2), "train-3e"),
    ],
)
def test_a_fidelity_is_shown_once_what_was_promoted_to_it_has_arrived(
    trials: list[Trial], expected: str
) -> None:
    assert shown_fidelity(trials) == expected
    assert {c.fidelity for c in front(trials)} == {expected}
    assert (passed_over(trials) is None) == (expected == "train-3e")


def test_a_rung_in_the_middle_is_shown_while_the_highest_waits() -> None:
    rungs = [trial(n, correct=150, fidelity="train-1e", origin="search") for n in range(9)]
    rungs += [trial(n, correct=160) for n in range(3)]
    top = [trial(0, correct=170, fidelity="train-9e")]

    assert shown_fidelity(rungs + top) == "train-3e"
    more = [trial(n, correct=170, fidelity="train-9e") for n in range(1, 3)]
    assert shown_fidelity(rungs + top + more) == "train-9e"


def test_it_is_said_why_a_higher_fidelity_is_not_shown() -> None:
    none = passed_over(run_with(judged=9, trust=1, open_=2))
    one = passed_over(run_with(judged=9, trust=1, arrived=1, open_=2))
    nothing = passed_over(run_with(judged=9, trust=1))

    assert none is not None
    assert "judged at supernet" in none
    assert "of 2 promoted" in none
    assert "none arrived" in none
    assert one is not None
    assert "of 3 promoted to it 1 arrived" in one
    assert nothing is not None
    assert "none was promoted" in nothing


def test_it_is_said_when_no_network_was_trained_alone() -> None:
    inherited = passed_over(run_with(judged=9))
    assembled = passed_over(run_with(judged=9), is_graft=True)

    assert inherited is not None
    assert "with inherited weights: none was trained alone" in inherited
    assert assembled is not None
    assert "as assembled: none was healed" in assembled


def test_no_results_have_no_shown_fidelity() -> None:
    with pytest.raises(ValueError, match="No network has been judged yet"):
        shown_fidelity([trial(1, correct=1, fidelity="retrain-micro-9e")])


def test_a_fidelity_without_results_is_named() -> None:
    with pytest.raises(ValueError, match=r"'train-8e'.*train-3e, supernet"):
        front([trial(1, correct=1), trial(1, correct=1, fidelity="supernet")], fidelity="train-8e")


def test_the_front_is_sorted_by_macs_and_leaves_out_what_is_dominated() -> None:
    trials = [trial(3, correct=180), trial(1, correct=100), trial(2, correct=90)]

    members = front(trials, objectives=("top1", "macs"))

    assert [member.id for member in members] == [1, 3]
    assert all(member.on_front and not member.near_front for member in members)


def test_what_only_noise_keeps_off_the_front_is_marked() -> None:
    trials = [trial(1, correct=150), trial(2, correct=146), trial(3, correct=100)]

    found = {c.id: c for c in candidates(trials, fidelity="train-3e")}

    assert [found[number].on_front for number in (1, 2, 3)] == [True, False, False]
    assert [found[number].near_front for number in (1, 2, 3)] == [False, True, False]


def test_more_images_tell_apart_what_few_do_not() -> None:
    few = [trial(1, correct=150), trial(2, correct=146)]
    many = [trial(1, correct=15_000, total=20_000), trial(2, correct=14_600, total=20_000)]

    assert candidates(few, fidelity="train-3e")[1].near_front
    assert not candidates(many, fidelity="train-3e")[1].near_front


def test_a_network_without_latency_is_on_no_front_of_latency() -> None:
    trials = [trial(1, correct=199), trial(2, correct=100, latency_ms=3.0)]

    members = front(trials, objectives=("top1", "latency_ms"))

    assert [member.id for member in members] == [2]


def test_a_latency_that_was_never_measured_is_no_objective() -> None:
    with pytest.raises(ValueError, match="measured for no network"):
        front([trial(1, correct=1)], objectives=("top1", "latency_ms"))


@pytest.mark.parametrize("objectives", [("top1", "flops"), ()])
def test_unknown_objectives_are_refused(objectives: tuple[str, ...]) -> None:
    with pytest.raises(
        ValueError, match="Objectives are top1, macs, params, latency_ms, memory_mib; got"
    ):
        front([trial(1, correct=1)], objectives=objectives)


def test_losses_are_the_error_and_the_costs_in_millions() -> None:
    found = candidates([trial(1, correct=150, latency_ms=2.5)], fidelity="train-3e")

    losses = candidate_losses(found, ("latency_ms", "top1", "params", "macs"))

    assert losses.tolist() == [[2.5, 25.0, found[0].params / 1e6, found[0].macs / 1e6]]


def test_retrainings_stand_apart_by_recipe() -> None:
    trials = [
        trial(1, correct=150),
        trial(1, correct=180, fidelity="retrain-micro-9e"),
        trial(1, correct=190, fidelity="retrain-micro-90e"),
    ]

    assert [(c.fidelity, c.top1) for c in retrained(trials)] == [
        ("retrain-micro-9e", 90.0),
        ("retrain-micro-90e", 95.0),
    ]


def test_json_has_stable_keys_and_gives_the_architecture_back() -> None:
    (candidate,) = front([trial(1, correct=150)])

    data = json.loads(json.dumps(to_json(candidate)))

    assert set(data) == {
        "id", "key", "fidelity", "top1", "top1_low", "top1_high", "num_seeds", "near_front",
        "front_probability",
        "full_epochs", "full_forecast", "full_low", "full_high",
        "params", "macs", "latency_ms", "latency_low_ms", "latency_high_ms", "memory_mib",
        "mixers",
        "dims",
        "architecture",
    }  # fmt: skip
    assert data["latency_ms"] is None
    assert data["key"] == Architecture.from_dict(data["architecture"]).key == network(1).key


def test_one_training_is_worth_its_images_and_a_spread_of_seeds_makes_it_worth_less() -> None:
    (once,) = candidates([trial(1, correct=150)], fidelity="train-3e")
    (agreed,) = candidates([trial(1, correct=150, seed=s) for s in range(3)], fidelity="train-3e")
    (spread,) = candidates(
        [trial(1, correct=140 + 10 * s, seed=s) for s in range(3)], fidelity="train-3e"
    )

    assert once.images == agreed.images == NUM_IMAGES
    assert 0 < spread.images < NUM_IMAGES / 4


def test_the_chance_of_a_rival_within_noise_is_about_even() -> None:
    found = candidates([trial(1, correct=150), trial(2, correct=151)], fidelity="train-3e")

    first, second = add_probabilities(found, ("top1", "macs"))

    assert first.front_probability == pytest.approx(1.0, abs=1e-3)
    assert second.front_probability == pytest.approx(0.54, abs=0.03)


def test_a_front_of_costs_alone_is_certain() -> None:
    found = candidates(
        [trial(1, correct=150), trial(2, correct=1)], fidelity="train-3e", objectives=("macs",)
    )

    assert [c.front_probability for c in add_probabilities(found, ("macs",))] == [1.0, 0.0]


def test_what_is_below_a_fidelity_is_what_was_judged_lower() -> None:
    """One network was trained for three epochs, all that was judged lower, and a second longer."""
    lower = trial(1, correct=100, fidelity="train-1e", origin="search")
    higher = trial(2, correct=150, fidelity="train-9e", state="done")
    broken = trial(3, correct=0, fidelity="train-1e", state="failed", origin="search")
    arrived = trial(1, correct=120, fidelity="train-3e")
    waits = trial(4, correct=0, fidelity="train-9e", state="waiting")
    waiting = [trial(n, correct=0, fidelity="train-9e", state="waiting") for n in range(5, 9)]
    trials = [lower, higher, broken, arrived, waits, *waiting]
    assert shown_fidelity(trials) == "train-3e"


def test_a_network_that_only_the_horizon_trained_has_a_result() -> None:
    """`search compare` asks of one network: there is nothing else of it."""
    ends = {3: 90, 10: 120, 20: 150}
    trials = [
        trial(1, correct=right, fidelity=f"train-{epochs}e", origin="horizon")
        for epochs, right in ends.items()
    ]
    (found,) = judged_at(trials)
    assert (found.fidelity, found.top1) == ("train-20e", 75.0)


def test_an_order_of_a_part_of_the_front_is_said_to_be_such() -> None:
    """Of a front of shared weights only some members were trained alone, and have forecasts."""
    curves = {1: (60, 80), 2: (70, 95), 3: (75, 105), 4: (90, 120), 5: (95, 135), 6: (100, 150)}
    trials = [
        trial(n, correct=right, fidelity=fidelity)
        for n, ends in curves.items()
        for fidelity, right in zip(("train-3e", "train-10e"), ends, strict=True)
    ]
    trials += [trial(n, correct=40 + 9 * n, fidelity="supernet") for n in range(4, 10)]
    judged = candidates(trials, fidelity="supernet", objectives=("top1", "macs"))
    assert sum(c.on_front for c in judged) == 6

    order = later_order(add_forecasts(judged, trials, epochs=40))

    assert order is not None
    assert (order.num_pairs, order.num_unknown) == (2, 3)
    said = order.sentence(40)
    assert said.startswith("3 of this front's 6 members have a forecast, whose order is likely to")
    assert "of their 2 pairs of neighbours" in said
    assert "the most accurate of them stays that" in said


@pytest.mark.parametrize(
    ("chance", "said"), [(0.0, "less than 1 %"), (0.412, "41 %"), (1.0, "more than 99 %")]
)
def test_no_chance_that_was_counted_is_certain(chance: float, said: str) -> None:
    order = LaterOrder(num_pairs=2, expected_turns=0.5, best_stays=chance)
    assert order.sentence(40).endswith(f"stays that with a chance of {said}.")
