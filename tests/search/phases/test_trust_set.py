"""What rankings are compared with: mixers alone and random networks, however few there are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from search.phases.session import Session
from search.phases.trust import choose_trust_set
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
