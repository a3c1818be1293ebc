"""Weights that backbones begin with are kept whole, or one message says that they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supernet.dense.start import START_FILE, read_start, write_start
from supernet.mixers import WeightSharing
from supernet.network import Supernet
from tests.supernet.dense.test_shared import space
from tests.tiny_dense import recipe


def test_a_start_that_is_gone_or_damaged_is_one_message(tmp_path: Path) -> None:
    rules, sharing = recipe("cells_semantic").rules, WeightSharing()
    state = Supernet(space(), sharing=sharing, backbone=rules).state_dict()
    write_start(tmp_path, state, space(), sharing, rules)
    found = read_start(tmp_path, space(), sharing, rules).state_dict()
    assert all(value.equal(state[name]) for name, value in found.items())
    kept = tmp_path / START_FILE
    kept.write_bytes(kept.read_bytes()[:-100])
    with pytest.raises(ValueError, match="keeps the weights that its backbones begin with"):
        read_start(tmp_path, space(), sharing, rules)
    kept.unlink()
    with pytest.raises(ValueError, match="Restore it from a copy, or begin another run"):
        read_start(tmp_path, space(), sharing, rules)


def test_a_start_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    fsync, replace = os.fsync, os.replace

    def noted(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(old: Path, new: Path) -> None:
        assert old.name in synced
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", renamed)
    rules, sharing = recipe("cells_semantic").rules, WeightSharing()
    state = Supernet(space(), sharing=sharing, backbone=rules).state_dict()
    write_start(tmp_path, state, space(), sharing, rules)
    assert synced >= {f"{START_FILE}.partial", tmp_path.name}
