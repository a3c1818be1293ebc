"""Laws of judging without training: all judges keep to the share, what was lost comes back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from search.record import AttemptOutcome, Measured
from search.record.record import Record
from search.run_folder.settings import RunSettings
from search.sampling import Proposer
from search.scheduling import judging
from search.scheduling.judging import make_proposer
from search.scheduling.tasks import Judgement, Outcome
from searchspace.architecture import Architecture
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space
from tests.clock import Clock
from tests.tiny_engine import SPACE, VALUES, ask_one, judging_of, tell_one, write_two

# What is promised: judgements may be 1.3 times slower than expected, each judge has a margin, a
# fifth of every surprise is believed, and the third loss is the last.
SAFETY, MARGIN_SECONDS, PACE_SHARE, MAX_LOST = 1.3, 0.2, 0.2, 3


def told(
    architecture: Architecture, outcome: Outcome = "done", *, seconds: float = 1.0
) -> Judgement:
    values = Measured(top1=50.0, correct=5.0, total=10.0, seconds=seconds)
    done = outcome == "done"
    cause = None if done else "the judge died"
    return Judgement(
        architecture=architecture, outcome=outcome, measured=values if done else None, cause=cause
    )


def most_that_fit(left: float, *, pace: float, judges: int, running: int = 0) -> int:
    """How long a batch may be: by trying, not by dividing.

    A batch of n may keep every judge for n judgements; what runs and one more at each judge come
    on top, and all of it may take `SAFETY` times longer than expected.
    """
    left -= MARGIN_SECONDS * judges
    needed = [(n * judges + running + judges) * pace * SAFETY for n in range(1, 100)]
    if (running + judges) * pace * SAFETY > left:
        return 0
    # What there is time for at all is worth one judgement.
    return max(sum(seconds <= left for seconds in needed), 1)


@pytest.mark.parametrize("judges", [1, 3])
@pytest.mark.parametrize("pace", [0.5, 2.0])
@pytest.mark.parametrize("limit", [1.0, 3.1, 9.0, 20.0, 50.0])
def test_a_batch_is_as_long_as_all_judges_have_time_for(
    record: Record, clock: Clock, limit: float, pace: float, judges: int
) -> None:
    attempt = record.start_attempt("trust", devices=1)
    clock.now += 0.5
    record.finish_attempt(attempt, outcome="done")
    asking = judging_of(record, limit=limit, pace=pace, judges=judges)

    first = asking.ask(50)
    second = asking.ask(50)

    expected = min(most_that_fit(limit - 0.5, pace=pace, judges=judges), 50)
    assert len(first) == expected
    more = most_that_fit(limit - 0.5, pace=pace, judges=judges, running=expected)
    assert len(second) == min(more, 50)
    assert len(asking.ask(1)) <= 1


def test_the_pace_follows_what_judgements_take(record: Record) -> None:
    asking = judging_of(record, limit=30.0, pace=1.0)
    (one,) = asking.ask(1)

    asking.tell([told(one, seconds=6.0)])

    pace = 1.0 + (6.0 - 1.0) * PACE_SHARE
    assert pace == 2.0
    assert len(asking.ask(50)) == most_that_fit(30.0, pace=pace, judges=1) == 10
    # What failed took no time that says anything.
    other = judging_of(record, limit=30.0, pace=1.0)
    (bad,) = other.ask(1)
    other.tell([told(bad, "failed")])
    assert len(other.ask(50)) == most_that_fit(30.0, pace=1.0, judges=1) == 21


@pytest.mark.parametrize("judges", [1, 4])
@pytest.mark.parametrize("slower", [0.5, 1.0, 1.25])
def test_a_phase_ends_near_its_limit_and_never_beyond(
    record: Record, clock: Clock, slower: float, judges: int
) -> None:
    limit, pace = 100.0 * judges, 0.5
    asking = judging_of(record, limit=limit, pace=pace, judges=judges)
    attempt = record.start_attempt("search", devices=judges)
    batches = [asking.ask(8) for _ in range(judges)]
    while any(batches):
        # All judges work at the same time, for as long as the longest batch takes.
        clock.now += slower * pace * max(len(batch) for batch in batches)
        for batch in batches:
            asking.tell([told(one, seconds=slower * pace) for one in batch])
        batches = [asking.ask(8) for _ in range(judges)]
    record.finish_attempt(attempt, outcome="done")

    assert 0.93 * limit <= record.spent() <= limit


def test_a_judgement_that_is_lost_again_and_again_has_failed(record: Record) -> None:
    asking = judging_of(record)
    keys = []
    for _ in range(MAX_LOST):
        (lost,) = asking.ask(1)
        keys.append(lost.key)
        asking.tell([told(lost, "lost")])
    (other,) = asking.ask(1)

    assert len(set(keys)) == 1
    assert other.key != keys[0]
    trial = next(trial for trial in record.trials() if trial.key == keys[0])
    assert (trial.state, trial.num_attempts) == ("failed", MAX_LOST)
    assert trial.cause == f"lost {MAX_LOST} times; last: the judge died"
    assert record.count_lost(trial.id) == MAX_LOST - 1


def test_what_the_user_stops_is_not_held_against_a_judgement(record: Record) -> None:
    stop = False
    asking = judging_of(record, interrupted=lambda: stop)
    for _ in range(MAX_LOST + 2):
        stop = False
        (one,) = asking.ask(1)
        stop = True
        assert asking.should_stop()
        asking.tell([told(one, "lost")])
        assert asking.ask(1) == []
    (trial,) = record.trials()
    assert (trial.state, record.count_lost(trial.id)) == ("waiting", 0)


def test_what_waits_is_handed_out_before_anything_new(record: Record) -> None:
    asking = judging_of(record)
    first, second = asking.ask(2)
    asking.tell([told(first), told(second, "lost")])

    again, new = asking.ask(2)

    assert again.key == second.key
    assert new.key not in {first.key, second.key}
    # A trial is charged nothing: the judges are charged as a whole.
    assert record.spent() == 0.0


def test_a_judgement_that_is_done_after_losses_is_done(record: Record) -> None:
    asking = judging_of(record)
    for _ in range(MAX_LOST - 1):
        (one,) = asking.ask(1)
        asking.tell([told(one, "lost")])
    (again,) = asking.ask(1)
    asking.tell([told(again, "done")])
    (trial,) = record.trials()
    assert (trial.state, trial.measured.top1) == ("done", 50.0)


def test_what_is_lost_hides_nothing_that_is_told_with_it(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = judging_of(record)
    first, second, third = asking.ask(3)
    learned: list[Architecture] = []
    tell = asking._proposer.tell
    monkeypatch.setattr(
        asking._proposer,
        "tell",
        lambda architecture, losses: (learned.append(architecture), tell(architecture, losses)),
    )
    good = Measured(top1=50.0, correct=5.0, total=10.0, seconds=1.0)
    ends: list[Outcome] = ["lost", "done", "done"]
    asking.tell(
        [
            Judgement(
                architecture=one,
                outcome=end,
                measured=good if end == "done" else None,
                cause="died",
            )
            for one, end in zip((first, second, third), ends, strict=True)
        ]
    )
    assert learned == [second, third]
    assert asking.ask(1) == [first]
    assert not [key for key in asking._running if key != first.key]


def test_what_is_judged_beside_proposals_is_a_quarter_of_any_beginning(record: Record) -> None:
    rng = random.Random(5)
    beside = list({a.key: a for a in (SPACE.sample(rng) for _ in range(6))}.values())
    asking = judging_of(record, beside=beside)
    asked = [architecture for _ in range(8) for architecture in asking.ask(3)]
    keys = [architecture.key for architecture in beside]
    turns = [number for number, one in enumerate(asked, 1) if one.key in keys]
    assert turns == [4, 8, 12, 16, 20, 24][: len(keys)]
    assert [asked[turn - 1].key for turn in turns] == keys
    assert len({architecture.key for architecture in asked}) == 24


def test_the_first_architectures_are_judged_first_and_once(record: Record) -> None:
    first = [SPACE.sample(random.Random(seed)) for seed in (1, 2)]
    asking = judging_of(record, first=first)
    asked = []
    for _ in range(6):
        architecture = ask_one(asking)
        assert architecture is not None
        asked.append(architecture)
        tell_one(asking, architecture, "done")
    assert asked[:2] == first
    assert len({architecture.key for architecture in asked}) == 6
    resumed = ask_one(judging_of(record, first=first))
    assert resumed is not None
    assert resumed.key not in {architecture.key for architecture in asked}


def test_it_has_run_dry_when_the_space_is_used_up(record: Record, tmp_path: Path) -> None:
    asking = judging_of(record, space=load_space(write_two(tmp_path)), judges=2)
    assert len(asking.ask(2)) == 2
    assert not asking.ran_dry
    assert asking.ask(1) == []
    assert asking.ran_dry


def test_what_is_under_way_is_not_told_as_failed_and_not_proposed(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A design that failed counts as bad as the worst; with many devices many are under way."""
    told: dict[str, object] = {}

    class Watched(Proposer):
        def tell(self, architecture: Architecture, losses: object) -> None:
            raise AssertionError

        def __init__(self, space: SearchSpace, **given: Any) -> None:
            told.update({one.key: losses for one, losses in given["known"]})
            super().__init__(space, **given)

    monkeypatch.setattr(judging, "Proposer", Watched)
    done, failed, running, waiting = [SPACE.sample(random.Random(seed)) for seed in range(4)]
    ends: tuple[AttemptOutcome | None, ...] = ("done", "failed", None, "lost")
    for one, outcome in zip((done, failed, running, waiting), ends, strict=True):
        number = record.add_architecture(one, params=1, macs=1)
        trial = record.add_trial(number, fidelity="supernet", seed=0, origin="search")
        attempt = record.start_attempt("search", devices=0, trial_id=trial)
        if outcome is not None:
            measured = VALUES if outcome == "done" else None
            record.finish_attempt(attempt, outcome=outcome, measured=measured, cause=outcome)
    assert {trial.state for trial in record.trials()} == {"done", "failed", "running", "waiting"}
    settings = RunSettings(data="digits", budget="1cpu-minute", sampler="random")
    proposer = make_proposer(SPACE, settings, record.trials())
    assert told.keys() == {done.key, failed.key}
    assert told[failed.key] is None
    known = {trial.key for trial in record.trials()}
    proposed = {one.key for one in (proposer.ask() for _ in range(20)) if one is not None}
    assert len(proposed) == 20
    assert not known & proposed


def test_what_proposes_nothing_has_not_run_dry(record: Record) -> None:
    asking = judging_of(record, proposes=False)
    assert asking.ask(1) == []
    assert not asking.ran_dry


def test_judging_ends_before_the_limit(record: Record, clock: Clock) -> None:
    attempt = record.start_attempt("search", devices=1)
    asking = judging_of(record, limit=10.0)
    while (architecture := ask_one(asking)) is not None:
        clock.now += 1.0
        tell_one(asking, architecture, "done")
    record.finish_attempt(attempt, outcome="done")
    assert 7.0 <= record.spent() <= 10.0


def test_a_judgement_lost_with_its_judge_is_handed_out_again(record: Record) -> None:
    asking = judging_of(record)
    lost = ask_one(asking)
    assert lost is not None
    tell_one(asking, lost, "lost", "the judge died")
    again = ask_one(asking)
    assert again is not None
    assert again.key == lost.key
    tell_one(asking, again, "done")
    (trial,) = record.trials(fidelity="supernet")
    assert trial.state == "done"
    assert trial.num_attempts == 2


def test_a_judgement_that_a_killed_run_left_open_is_taken_up(
    record: Record, tmp_path: Path
) -> None:
    left = ask_one(judging_of(record))
    assert left is not None
    record.close()
    with Record.open(tmp_path / "record.db") as reopened:
        reopened.close_orphans()
        again = ask_one(judging_of(reopened))
        assert again is not None
        assert again.key == left.key


def test_a_batch_is_handed_out_only_as_far_as_the_budget_goes(record: Record) -> None:
    assert len(judging_of(record).ask(8)) == 8
    asking = judging_of(record, limit=5.0)
    assert 1 <= len(asking.ask(8)) < 5


def test_judgements_that_fail_alone_do_not_cost_the_others_of_their_batch(
    record: Record,
) -> None:
    asking = judging_of(record)
    good, bad = asking.ask(2)
    asking.tell(
        [
            Judgement(architecture=bad, outcome="failed", measured=None, cause="ValueError: no"),
            Judgement(architecture=good, outcome="done", measured=VALUES),
        ]
    )
    states = {trial.key: trial.state for trial in record.trials()}
    assert states == {good.key: "done", bad.key: "failed"}
