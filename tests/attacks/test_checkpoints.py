"""Attacks on checkpoints: power cuts, flipped bits, half-written files, names that lead away."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from search.retraining.finished import find_retrained
from search.retraining.network import RetrainOptions, retrain
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, WindowAttention
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space
from supernet.data import ImageData
from supernet.network.supernet import Supernet
from supernet.shared_weights import checkpoint as shared_checkpoint
from supernet.shared_weights.checkpoint import (
    INDEX_FILE,
    check_supernet,
    load_supernet,
    load_training,
    save_supernet,
)
from supernet.training import checkpoint
from supernet.training.checkpoint import damage, latest_checkpoint, write_checkpoint
from tests.tiny_data import changed, noise, tiny_data

SPACE_TEXT = """
name: tiny
img_size: 8
patch_size: 4
stages: [{dim: 8, depth: 1}]
mixers:
  window_attention: {window_size: 2, num_heads: [1, 2]}
  depthwise_conv: {kernel_size: [3, 5]}
"""
MIXERS = (DepthwiseConv(kernel_size=3), WindowAttention(window_size=2, num_heads=2))
SMALL = Architecture(img_size=8, patch_size=2, num_classes=2, stages=(Stage(dim=8, mixers=MIXERS),))
RECIPE = changed("micro", epochs=3, warmup_epochs=0, batch_size=8, drop_path=0.2)
CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    (tmp_path / "data").mkdir()
    return tiny_data(tmp_path / "data", *noise(24, 8))


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    (tmp_path / "tiny.yaml").write_text(SPACE_TEXT)
    return load_space(str(tmp_path / "tiny.yaml"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Note, in order, what is synced, renamed and removed, by the name that it has then."""
    noted: list[tuple[str, str]] = []
    fsync, rename, rmtree, unlink = os.fsync, os.replace, shutil.rmtree, Path.unlink

    def note_fsync(descriptor: int) -> None:
        noted.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def note_rename(old: Path, new: Path) -> None:
        noted.append(("rename", Path(new).name))
        rename(old, new)

    def note_removal(remove: Callable[..., None]) -> Callable[..., None]:
        def noting(path: Path, *more: object, **named: object) -> None:
            if Path(path).exists():
                noted.append(("remove", Path(path).name))
            remove(path, *more, **named)

        return noting

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_rename)
    monkeypatch.setattr(shutil, "rmtree", note_removal(rmtree))
    monkeypatch.setattr(Path, "unlink", note_removal(unlink))
    return noted


def write_number(number: int) -> Callable[[Path], None]:
    return lambda folder: (folder / "number").write_text(str(number)) and None


def flip_a_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def test_a_checkpoint_is_on_the_disk_before_the_older_one_is_removed(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    write_checkpoint(tmp_path, 1, write_number(1))
    calls.clear()

    write_checkpoint(tmp_path, 2, write_number(2))

    renamed = calls.index(("rename", "checkpoint-00002"))
    before, after = calls[:renamed], calls[renamed + 1 :]
    names = ("number", "checksums.json", "checkpoint-00002.partial")
    assert set(before) == {("sync", name) for name in names}
    assert after == [("sync", tmp_path.name), ("remove", "checkpoint-00001")]


def test_a_supernet_is_on_the_disk_before_the_older_one_is_removed(
    tmp_path: Path, space: SearchSpace, calls: list[tuple[str, str]]
) -> None:
    folder = tmp_path / "supernet"
    save_supernet(folder, step=1, supernet=Supernet(space), averaged=None, training={})
    calls.clear()

    save_supernet(folder, step=2, supernet=Supernet(space), averaged=None, training={})

    renamed = calls.index(("rename", INDEX_FILE))
    new = ("weights-2.safetensors", "training-2.pt", f"{INDEX_FILE}.partial")
    assert set(calls[:renamed]) == {("sync", name) for name in new}
    assert calls[renamed + 1] == ("sync", "supernet")
    old = {("remove", "weights-1.safetensors"), ("remove", "training-1.pt")}
    assert set(calls[renamed + 2 :]) == old


def test_saving_a_step_again_leaves_the_older_one_until_it_is_done(
    tmp_path: Path, space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    older, newer = Supernet(space), Supernet(space)
    save_supernet(tmp_path, step=7, supernet=older, averaged=None, training={"length": 9})

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shared_checkpoint, "write_text", power_cut)
        with pytest.raises(KeyboardInterrupt):
            save_supernet(tmp_path, step=7, supernet=newer, averaged=None, training={"length": 5})
    found = Supernet(space)
    assert load_training(tmp_path, found, None, device=CPU) == {"length": 9}
    assert torch.equal(found.head.weight, older.head.weight)

    for _ in range(2):
        save_supernet(tmp_path, step=7, supernet=newer, averaged=None, training={"length": 5})
        assert load_training(tmp_path, found, None, device=CPU) == {"length": 5}
        assert torch.equal(found.head.weight, newer.head.weight)
        assert len(list(tmp_path.glob("*-7*"))) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "checksums.json", None])
def test_a_damaged_checkpoint_lets_a_training_start_over_to_the_same_weights(
    data: ImageData, tmp_path: Path, name: str | None
) -> None:
    options = RetrainOptions(out=tmp_path / "whole", threads=1)
    retrain(SMALL, data, RECIPE, options)
    rng = random.Random(f"{name}")
    out = tmp_path / "out"
    seen: list[object] = []

    def spoil(report: object) -> None:
        seen.append(report)
        if len(seen) == 2:
            folder = latest_checkpoint(out)
            assert folder is not None
            if name is None:
                (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:1000])
            else:
                flip_a_bit(folder / name, rng)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrain(SMALL, data, RECIPE, RetrainOptions(out=out, threads=1, on_epoch=spoil))
    epochs: list[int] = []
    again = RetrainOptions(out=out, threads=1, on_epoch=lambda report: epochs.append(report.epoch))
    retrain(SMALL, data, RECIPE, again)

    assert epochs == [1, 2, 3]
    for file in ("model.safetensors", "model_ema.safetensors"):
        assert (out / file).read_bytes() == (options.out / file).read_bytes()


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(60):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        write_checkpoint(tmp_path / "out", 1, write_number(rng.getrandbits(99)))
        folder = tmp_path / "out" / "checkpoint-00001"
        assert damage(folder) is None
        flip_a_bit(folder / rng.choice(["number", "checksums.json"]), rng)
        # Of a checksum's name, a bit may make another: then that file is missing.
        assert damage(folder) is not None


@pytest.mark.parametrize("kind", ["weights", "training", "index"])
def test_a_supernet_with_a_flipped_bit_is_refused(
    tmp_path: Path, space: SearchSpace, kind: str
) -> None:
    rng = random.Random(kind)
    for _ in range(15):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        folder = tmp_path / "run" / "supernet"
        save_supernet(folder, step=3, supernet=Supernet(space), averaged=None, training={"a": 1})
        names = {"weights": "weights-3.safetensors", "training": "training-3.pt"}
        if kind != "index":
            flip_a_bit(folder / names[kind], rng)
        else:
            text = (folder / INDEX_FILE).read_text()
            start = text.index('"files"')
            place = rng.randrange(start, len(text) - 2)
            changed_text = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
            if json_or_none(changed_text) == json.loads(text):
                continue  # a bit of white space
            (folder / INDEX_FILE).write_text(changed_text)
        said = r"The supernet in .* cannot be read: .*Restore"
        with pytest.raises(ValueError, match=said):
            check_supernet(folder)
        with pytest.raises(ValueError, match=said):
            load_supernet(folder, space)
        with pytest.raises(ValueError, match=said):
            load_training(folder, Supernet(space), None, device=CPU)


def json_or_none(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


@pytest.mark.parametrize(
    "name",
    ["../weights-3.safetensors", "/etc/passwd", "a/weights-3.safetensors", "", "..", None, 3, []],
)
def test_an_index_that_leads_elsewhere_is_refused(
    tmp_path: Path, space: SearchSpace, name: object
) -> None:
    folder = tmp_path / "supernet"
    save_supernet(folder, step=3, supernet=Supernet(space), averaged=None, training={})
    shutil.copy(folder / "weights-3.safetensors", tmp_path)
    index = json.loads((folder / INDEX_FILE).read_text())
    index["files"]["weights"] = name
    if isinstance(name, str):
        index["sha256"][name] = index["sha256"].pop("weights-3.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps(index))

    with pytest.raises(ValueError, match="cannot be read"):
        load_supernet(folder, space)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"files": 3}', "[" * 100_000, "\xff"]
)
def test_an_index_that_is_none_is_one_message(
    tmp_path: Path, space: SearchSpace, text: str
) -> None:
    (tmp_path / INDEX_FILE).write_text(text, encoding="latin-1")

    with pytest.raises(ValueError, match=r"supernet\.json"):
        load_supernet(tmp_path, space)


def test_weights_that_are_a_link_are_refused_and_never_written_through(
    tmp_path: Path, space: SearchSpace
) -> None:
    mine, folder = tmp_path / "mine", tmp_path / "supernet"
    mine.write_text("years of work")
    folder.mkdir()
    for name in ("weights-3.safetensors", "training-3.pt", f"{INDEX_FILE}.partial"):
        (folder / name).symlink_to(mine)
    save_supernet(folder, step=3, supernet=Supernet(space), averaged=None, training={})
    assert mine.read_text() == "years of work"
    shutil.move(folder / "weights-3.safetensors", tmp_path / "elsewhere")
    (folder / "weights-3.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="not a regular file"):
        load_supernet(folder, space)


def test_only_what_the_program_wrote_is_removed(tmp_path: Path, space: SearchSpace) -> None:
    outside = tmp_path / "thesis"
    outside.mkdir()
    (outside / "chapter").write_text("1")
    folder, out = tmp_path / "supernet", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    (folder / "notes.txt").write_text("mine")
    (out / "checkpoint-00001").symlink_to(outside)
    (out / "checkpoint-of-my-own").mkdir()

    for step in (1, 2):
        save_supernet(folder, step=step, supernet=Supernet(space), averaged=None, training={})
        write_checkpoint(out, 7 + step, write_number(step))
    checkpoint.remove_checkpoints(out)

    assert (folder / "notes.txt").read_text() == "mine"
    assert (outside / "chapter").read_text() == "1"
    assert {path.name for path in out.iterdir()} == {"checkpoint-00001", "checkpoint-of-my-own"}


def test_retrained_weights_with_a_flipped_bit_are_refused(data: ImageData, tmp_path: Path) -> None:
    out = tmp_path / "out"
    retrain(SMALL, data, RECIPE, RetrainOptions(out=out, threads=1))
    find_retrained(str(out)).network()
    rng, whole = random.Random(0), (out / "model_ema.safetensors").read_bytes()
    for _ in range(10):
        flip_a_bit(out / "model_ema.safetensors", rng)
        with pytest.raises(ValueError, match=r"model_ema\.safetensors is not what was written"):
            find_retrained(str(out)).network()
        (out / "model_ema.safetensors").write_bytes(whole)


@pytest.mark.parametrize("file", ["result.json", "architecture.json"])
@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000])
def test_a_damaged_description_of_a_retraining_is_one_message(
    data: ImageData, tmp_path: Path, file: str, text: str
) -> None:
    out = tmp_path / "out"
    still = changed(RECIPE, epochs=1)
    retrain(SMALL, data, still, RetrainOptions(out=out, threads=1))
    (out / file).write_text(text)

    with pytest.raises(ValueError, match=f"The retraining in .* is damaged: {file}"):
        find_retrained(str(out))
