"""What a user names a network by: what is none of it is said as what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.run_folder.targets import load_target
from tests.tiny_run import write_run


def test_a_network_of_a_run_is_found_by_its_id(tmp_path: Path) -> None:
    write_run(tmp_path / "run")

    assert load_target(f"{tmp_path / 'run'}:7").stages


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("run", r"run is a folder.*run:7.*search pareto"),
        ("run/", r"run/ is a folder.*run:7.*search pareto"),
        ("run:x", r"after the colon comes the id"),
        ("run:9999", r"no architecture 9999.*search pareto"),
        ("timm:resnet18", r"only `search show` and `search transfer`"),
        ("gone:7", r"gone is not the folder of a run"),
        ("gone.json", r"no file gone\.json"),
        ("runs/gone", r"no file runs/gone"),
        ("swin_x", r"Unknown preset 'swin_x'. Did you mean"),
    ],
)
def test_what_is_no_network_is_said_as_what_it_is(
    target: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match=said):
        load_target(target)
