"""Laws of successive halving: it says when there is nothing more to begin."""

from __future__ import annotations

from pathlib import Path

from search.record.record import Record
from search.run_folder.settings import RunSettings
from search.scheduling.halving import Halving
from searchspace.spec_file import load_space

# Two networks: one stage of one block, with kernels of three taps or five.
SPACE = """
name: two
img_size: 8
patch_size: 4
stages: [{dim: 8, depth: 1}]
mixers:
  depthwise_conv: {kernel_size: [3, 5]}
"""


def test_it_has_run_dry_when_the_space_is_used_up(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(SPACE)
    settings = RunSettings(space=str(path), data="digits", budget="1cpu-minute", sampler="random")
    with Record.create(tmp_path / "record.db") as record:
        halving = Halving(record, load_space(str(path)), settings, {"train-1e": 1, "train-3e": 3})
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
