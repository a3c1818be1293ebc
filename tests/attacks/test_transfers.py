"""Attacks on `search transfer`: a result is of this transfer, and of the bytes that it left."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from search.run_folder.folder import own_run
from search.transferring.network import TransferOptions, transfer
from search.transferring.queue import TransferPlan, load_weights, transfer_members
from search.transferring.result import TransferResult, open_transferred
from searchspace.architecture import Architecture
from supernet.data.dense import DenseData, open_dense_data
from supernet.network import build_subnet
from tests.tiny_dense import architecture, recipe, write_data
from tests.tiny_run import write_run

NETWORK = architecture()
RECIPE = recipe("cells_semantic", steps=2)


def opened(folder: Path) -> DenseData:
    return open_dense_data(str(folder), "semantic", unpack_to=folder.parent)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DenseData]:
    """Make data, and a transfer on them that is done."""
    folder = tmp_path_factory.mktemp("made")
    data = opened(write_data(folder / "cells", train=4, val=2))
    transfer(NETWORK, data, RECIPE, TransferOptions(out=folder / "out", threads=1))
    return folder / "out", data


@pytest.fixture
def out(finished: tuple[Path, DenseData], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "out"))


def again(
    out: Path, data: DenseData, network: Architecture = NETWORK, **options: Any
) -> TransferResult | None:
    return transfer(network, data, RECIPE, TransferOptions(out=out, threads=1, **options))


def test_a_finished_transfer_is_given_again(finished: tuple[Path, DenseData], out: Path) -> None:
    first = open_transferred(out).result
    assert again(out, finished[1]) == first


def test_other_images_of_the_same_names_are_another_transfer(out: Path, tmp_path: Path) -> None:
    folder = write_data(tmp_path / "cells", train=4, val=2)
    path = folder / "masks" / "val" / "000.png"
    shutil.copy(folder / "masks" / "val" / "001.png", tmp_path / "other.png")
    content = bytearray(path.read_bytes())
    content += b"more"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a transfer of other images or from other weights"):
        again(out, opened(folder))


def test_other_weights_of_the_same_name_are_another_transfer(
    finished: tuple[Path, DenseData], out: Path
) -> None:
    torch.manual_seed(1)
    start = build_subnet(NETWORK).state_dict()
    for name in ("fresh", "from-x"):
        with pytest.raises(ValueError, match="a transfer of other images or from other weights"):
            again(out, finished[1], start=start, start_name=name)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a flipped bit": ("model.safetensors", lambda path: flip(path, -100)),
    "half of the weights": (
        "model.safetensors",
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    ),
    "no weights": ("model.safetensors", lambda path: path.unlink()),
    "no checksum": (
        "result.json",
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": {}})),
    ),
    "an empty result": ("result.json", lambda path: path.write_text("")),
    "a result that is a list": ("result.json", lambda path: path.write_text("[1]")),
    "a result without end": ("result.json", lambda path: path.write_text("[" * 100_000)),
    "a result without a key": ("result.json", lambda path: path.write_text("{}")),
    "no architecture": ("architecture.json", lambda path: path.unlink()),
    "an architecture that is a number": (
        "architecture.json",
        lambda path: path.write_text("7"),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_one_message_and_never_used(out: Path, name: str) -> None:
    file, damage = DAMAGES[name]
    damage(out / file)
    for use in (
        lambda: open_transferred(out).network(),
        lambda: load_weights(out, NETWORK),
    ):
        with pytest.raises(ValueError, match="is damaged") as raised:
            use()
        assert str(out) in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1


def test_weights_that_cannot_be_are_refused_before_a_trial_exists(
    finished: tuple[Path, DenseData], tmp_path: Path
) -> None:
    write_run(tmp_path / "run")
    with own_run(tmp_path / "run") as run:
        number = 3
        state = build_subnet(run.architecture(number)).state_dict()
        wrong = {name: value.clone() for name, value in state.items()}
        wrong["patch_embed.proj.weight"].fill_(float("nan"))
        other = build_subnet(NETWORK).state_dict()
        cases = (("nan", wrong, "finite numbers"), ("other", other, "Choose the folder|Name the"))
        for name, start, words in cases:
            path = tmp_path / f"{name}.safetensors"
            save_file(start, path)
            plan = TransferPlan(recipe=RECIPE, data=finished[1], data_source="", start=str(path))
            with pytest.raises(ValueError, match=words):
                transfer_members(run, [number], plan, console=Console(file=io.StringIO()))
        assert not [t for t in run.record.trials() if t.fidelity.startswith("transfer-")]
        assert not (run.folder / "transfer").exists()
