"""Networks for grey images, while images are read in colours: refused before any training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from search.retraining.network import check_fit
from search.transferring.target import check_target
from supernet.network import build_subnet
from tests.search.cli.test_app import search
from tests.tiny_data import noise, tiny_data
from tests.tiny_graft import TEACHER

GREY = TEACHER.replace(in_chans=1)
RULE = "Images are read in three colours, and this network takes in_chans=1."


def test_a_graft_of_a_grey_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey, out = tmp_path / "grey", tmp_path / "run"
    grey.mkdir()
    (grey / "architecture.json").write_text(json.dumps(GREY.to_dict()))
    save_file(build_subnet(GREY).state_dict(), grey / "model.safetensors")
    words = ("run", "--from", str(grey), "--data", "digits", "--budget", "1cpu-minutes")
    assert search(*words, "--out", str(out)) == 2
    assert RULE in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_trainings_of_a_grey_network(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = tiny_data(tmp_path / "data", *noise(28, 8))
    with pytest.raises(ValueError, match="in_chans=1"):
        check_fit(GREY.replace(img_size=data.img_size, num_classes=data.num_classes), data)
    with pytest.raises(ValueError, match="in_chans=1"):
        check_target(GREY)
