"""The script of an afternoon proposes points of the space, by Optuna's samplers as they are."""

from __future__ import annotations

import optuna
import pytest

from benchmarks.afternoon import SAMPLERS, choose
from searchspace.spec_file import load_space


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_what_optuna_suggests_is_a_network_of_the_space(name: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = load_space("digits")
    sampler = SAMPLERS[name](seed=3)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    keys = set()
    for number in range(12):
        trial = study.ask()
        choose(space, trial)
        built = space.build(lambda place, _, trial=trial: trial.params[place])
        assert space.choices_of(built) == trial.params
        keys.add(built.key)
        study.tell(trial, [float(number), 1.0])
    assert len(keys) > 6
