"""Laws of successive halving: it says when there is nothing more to begin."""

from __future__ import annotations

import random
from pathlib import Path

from search.record.record import Record
from search.run_folder.settings import RunSettings
from search.scheduling.halving import Halving
from searchspace.spec_file import load_space
from tests.tiny_engine import write_two


def test_it_has_run_dry_when_the_space_is_used_up(tmp_path: Path) -> None:
    space = write_two(tmp_path)
    settings = RunSettings(space=space, data="digits", budget="1cpu-minute", sampler="random")
    with Record.create(tmp_path / "record.db") as record:
        rungs = {"train-1e": 1, "train-3e": 3}
        halving = Halving(record, load_space(space), settings, rungs, num_promoted=1)
        assert not halving.ran_dry
        found = []
        for _ in range(2):
            choice = halving.next()
            assert not halving.ran_dry
            assert choice is not None
            assert choice.epochs == 1
            found.append(choice.architecture.key)
        assert len(set(found)) == 2
        assert halving.next() is None
        assert halving.ran_dry


def test_what_is_known_beforehand_is_trained_before_what_is_proposed_and_once(
    tmp_path: Path,
) -> None:
    settings = RunSettings(space="digits", data="digits", budget="1cpu-minute", sampler="random")
    space = load_space("digits")
    singles = [one for _, one in space.single_mixer_architectures()]
    known = [space.sample(random.Random(seed)) for seed in range(4)] + singles[:1]
    with Record.create(tmp_path / "record.db") as record:

        def halving(num_promoted: int) -> Halving:
            return Halving(
                record,
                space,
                settings,
                {"train-1e": 1},
                num_promoted=num_promoted,
                first=known,
            )

        asked = halving(0)
        found = [choice.architecture for _ in range(8) if (choice := asked.next()) is not None]
        assert found[:5] == known
        assert len({one.key for one in found}) == 8
        for one in found[:2]:
            number = record.add_architecture(one, params=1, macs=1)
            record.add_trial(number, fidelity="train-1e", seed=0, origin="search")
        asked = halving(0)
        again = [choice.architecture for _ in range(3) if (choice := asked.next()) is not None]
        assert again == known[2:]
