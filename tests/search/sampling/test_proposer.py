"""Laws of proposals: distinct, canonical, allowed; results come back; the mirror holds them."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage

from search.sampling.proposer import SAMPLERS, Mirror, Proposer
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.space import MixerChoices, SearchSpace, StageChoices

CHOICES = MixerChoices(
    kinds={
        # On a map of 4 tokens both windows are one: two choices, one architecture.
        "window_attention": {"window_size": (4, 8), "num_heads": (1, 2)},
        "depthwise_conv": {"kernel_size": (3, 5)},
    },
    forbid=({"mixer": ("depthwise_conv",), "kernel_size": (5,)},),
)
SPACE = SearchSpace(
    name="twelve networks",
    img_size=8,
    patch_size=2,
    num_classes=3,
    stages=(StageChoices(dims=(8,), depths=(1, 2), choices=(CHOICES, CHOICES)),),
)


def losses_of(architecture: Architecture) -> tuple[float, float]:
    cost = count(architecture)
    return float(cost.params % 97), float(cost.macs)


def proposer(sampler: str, known: list[Architecture] | None = None) -> Proposer:
    return Proposer(
        SPACE,
        sampler=sampler,
        seed=0,
        num_losses=2,
        known=[(architecture, losses_of(architecture)) for architecture in known or []],
    )


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_proposals_are_distinct_and_allowed_until_the_space_is_exhausted(sampler: str) -> None:
    asking, found = proposer(sampler), []
    while (architecture := asking.ask()) is not None:
        found.append(architecture)
        asking.tell(architecture, losses_of(architecture))
    assert len({architecture.key for architecture in found}) == len(found) == SPACE.size() == 12
    assert all(SPACE.violation(architecture) is None for architecture in found)


def test_what_is_known_is_not_proposed_again() -> None:
    asking = proposer("random")
    known = [a for a in (asking.ask() for _ in range(5)) if a is not None]
    resumed = proposer("tpe", known)
    rest = []
    while (architecture := resumed.ask()) is not None:
        rest.append(architecture)
        resumed.tell(architecture, None)
    assert {a.key for a in rest}.isdisjoint(a.key for a in known)
    assert len(rest) == 7


def test_a_resumed_search_does_not_repeat_its_first_proposals() -> None:
    first = proposer("random").ask()
    assert first is not None
    again = proposer("random", [first]).ask()
    assert again is not None
    assert again.key != first.key


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown sampler 'best'. Known: guided, nsga2"):
        proposer("best")


def test_the_mirror_holds_each_result_once(tmp_path: Path) -> None:
    asking = proposer("random")
    judged = [a for a in (asking.ask() for _ in range(3)) if a is not None]
    results = [(architecture, losses_of(architecture)) for architecture in judged]
    for _ in range(2):
        with Mirror(tmp_path / "study.db", name="run", losses=("top1", "macs")) as mirror:
            mirror.add(SPACE, results)
    storage = RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    trials = optuna.load_study(study_name="run", storage=storage).trials
    storage.remove_session()
    storage.engine.dispose()
    assert [tuple(trial.values) for trial in trials] == [losses for _, losses in results]
    assert [trial.params for trial in trials] == [SPACE.choices_of(a) for a in judged]
