"""The trust phase: a few networks trained alone, to compare rankings with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import chain, islice, zip_longest

from search.cluster import JudgeCrew
from search.phases.alone import train_alone
from search.phases.session import Session
from search.plan import Plan
from search.results import trained_alone
from search.scheduling import Choice
from search.trust import MIN_NETWORKS
from searchspace.architecture import Architecture


def choose_trust_set(session: Session, number: int) -> list[Architecture]:
    """Name so many networks that span the space: each mixer alone and random ones, in turn.

    Single mixers are of the space's first sizes, mostly its largest. Of few networks half are
    random ones: else a ranking of networks that cost alike would stand for that of a search. The
    first of many are those of few.
    """
    space, rng = session.space, random.Random(f"trust/{session.settings.seed}")
    singles = [
        architecture
        for _, architecture in space.single_mixer_architectures()
        if space.violation(architecture) is None
    ]
    drawn = (space.sample(rng) for _ in range(number * 4))
    in_turn = zip_longest(singles, islice(drawn, len(singles)))
    ordered = chain(filter(None, chain.from_iterable(in_turn)), drawn)
    return list({architecture.key: architecture for architecture in ordered}.values())[:number]


def train_trust_set(session: Session, plan: Plan) -> tuple[Plan, list[Architecture]]:
    """Train the networks of `choose_trust_set`; see `train_networks`.

    A plan of few may have reckoned with slower trainings than they are. Of fewer than five no
    ranking is known, and a predictor needs eight: up to that number further ones follow while the
    phase has time for them.
    """
    plan, networks = train_networks(
        session, plan, lambda plan: choose_trust_set(session, plan.num_trust)
    )
    more = choose_trust_set(session, MIN_NETWORKS)[len(networks) :]
    if more:
        _train(session, plan, more, probes=False)
        known = _tried(session, plan)
        networks += [architecture for architecture in more if architecture.key in known]
    return plan, networks


def train_networks(
    session: Session, plan: Plan, choose: Callable[[Plan], list[Architecture]]
) -> tuple[Plan, list[Architecture]]:
    """Train networks alone on the rung of the trust phase; where they are too slow, shorter ones.

    Returns:
        The plan that was followed, and the networks.
    """
    networks = choose(plan)
    pace = _train(session, plan, networks)
    if pace is not None:
        plan = session.plan_slower(plan, pace, phase="trust")
        networks = choose(plan)
        _train(session, plan, networks, probes=False)
    return plan, networks


def _train(
    session: Session, plan: Plan, networks: list[Architecture], *, probes: bool = True
) -> float | None:
    known = _tried(session, plan)
    remaining = [architecture for architecture in networks if architecture.key not in known]

    def choose() -> Choice | None:
        if not remaining:
            return None
        return Choice(architecture=remaining.pop(0), epochs=plan.trust_rung)

    return train_alone(session, plan, "trust", choose, probes=probes)


def _tried(session: Session, plan: Plan) -> set[str]:
    return {t.key for t in session.record.trials(fidelity=trained_alone(plan.trust_rung))}


def score_without_training(
    session: Session, crew: JudgeCrew, phase: str, networks: list[Architecture]
) -> None:
    """Compute the zero-cost proxies of the trust set, once."""
    if session.state.proxy_scores is None:
        tick = session.tick(phase, may_stop=True)
        session.state.proxy_scores = proxies_of(crew, networks, tick)


def proxies_of(
    crew: JudgeCrew, networks: Sequence[Architecture], while_waiting: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """Compute the zero-cost proxies of networks on all judges, by key, in the networks' order."""
    found: dict[str, dict[str, float]] = {}
    for part in crew.call_split("proxy_scores", networks, while_waiting=while_waiting):
        found |= part
    return {network.key: found[network.key] for network in networks if network.key in found}
