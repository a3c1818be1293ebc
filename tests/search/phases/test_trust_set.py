"""What rankings are compared with: mixers alone and random networks, however few there are."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from search.phases import trust
from search.phases.session import Session
from search.phases.trust import choose_trust_set, train_trust_set
from search.plan import Plan
from search.scheduling import Choice
from searchspace.cost import count
from searchspace.single_mixer import is_single_mixer
from searchspace.spec_file import load_space


def session_of(space: str, seed: int) -> Session:
    known = SimpleNamespace(space=load_space(space), settings=SimpleNamespace(seed=seed))
    return cast(Session, known)


@pytest.mark.parametrize("space", ["digits", "micro", "micro_128", "swin_t"])
@pytest.mark.parametrize("number", [2, 5, 8, 24])
def test_few_networks_are_no_single_mixers_only(space: str, number: int) -> None:
    """Those are of the largest sizes: their ranking says nothing about cheap and dear networks."""
    session = session_of(space, seed=0)
    chosen = choose_trust_set(session, number)
    assert len({one.key for one in chosen}) == number
    assert all(session.space.violation(one) is None for one in chosen)
    published = {one.key for _, one in session.space.single_mixer_architectures()}
    singles = [one.key in published for one in chosen]
    in_turn = min(number, 2 * len(published))
    assert singles[:in_turn] == [place % 2 == 0 for place in range(in_turn)]
    assert not any(singles[in_turn:])
    mixed = [one for one in chosen if not is_single_mixer(one)]
    assert len(mixed) >= number // 2 - 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_first_of_many_are_those_of_few(seed: int) -> None:
    """A plan that turns out too long goes on with fewer: what was trained is among them."""
    session = session_of("micro", seed)
    many = choose_trust_set(session, 24)
    for number in range(1, 24):
        assert choose_trust_set(session, number) == many[:number]


def test_few_networks_span_costs() -> None:
    """Five single mixers of `micro` at its largest cost 1.5 times each other at most."""
    chosen = choose_trust_set(session_of("micro", seed=0), 8)
    macs = [count(one).macs for one in chosen]
    assert max(macs) / min(macs) > 2


@pytest.mark.parametrize(
    ("planned", "affordable", "trained"),
    [(4, 6, 6), (4, 4, 4), (4, 3, 3), (4, 30, 8), (12, 30, 12)],
)
def test_time_that_is_left_goes_to_a_ranking_of_few_networks(
    monkeypatch: pytest.MonkeyPatch, planned: int, affordable: int, trained: int
) -> None:
    """Four networks check nothing, so a run that has time for more has them."""
    session, done = session_of("micro", seed=0), list[str]()
    session.record = cast(
        Any,
        SimpleNamespace(trials=lambda fidelity: [SimpleNamespace(key=key) for key in done]),
    )

    def train_alone(
        session: Session, plan: Plan, phase: str, choose: Callable[[], Choice | None], **_: object
    ) -> None:
        while len(done) < affordable and (choice := choose()) is not None:
            done.append(choice.architecture.key)

    monkeypatch.setattr(trust, "train_alone", train_alone)
    plan = cast(Plan, SimpleNamespace(num_trust=planned, trust_rung=1))
    expected = [one.key for one in choose_trust_set(session, max(planned, trained))]
    for _ in range(2):  # resumed, nothing is trained again
        found = train_trust_set(session, plan)[1]
        assert [one.key for one in found] == expected
        assert done == expected[:trained]
