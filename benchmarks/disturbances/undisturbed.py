"""The undisturbed run: folders to begin from, and the numbers that it found."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.disturbances.scene import End, Scene

BUDGET = 160.0
SPACE = """
name: tiny
img_size: 8
patch_size: 4
mlp_ratio: [1, 2, 3]
stages: [{dim: 8, depth: 2}]
mixers:
  depthwise_conv: {kernel_size: [3, 5]}
  window_attention: {window_size: 2, num_heads: [1, 2, 4]}
"""
START = (
    *("run", "--budget", f"{BUDGET:.0f}cpu-seconds", "--data", "images", "--out", "RUN"),
    *("--space", "tiny.yaml", "--recipe", "quick", "--sampler", "random"),
)
RESUME = ("run", "--resume", "--out", "RUN")


@dataclass(frozen=True, slots=True)
class Known:
    """The undisturbed run: folders to begin from, and its numbers.

    Attributes:
        folders: By state: ``half``, ``done``, ``retrained`` and ``half retrained``.
        numbers: Of the finished run, see `numbers_of`.
        events: How many each command has.
        chosen: The network that is retrained.
    """

    folders: dict[str, Path]
    numbers: dict[str, Any]
    events: dict[str, int]
    chosen: str


def retrain_words(known: Known) -> tuple[str, ...]:
    """Return the command that retrains the chosen network."""
    return ("retrain", "RUN", "--arch", known.chosen, "--epochs", "3")


def prepare(root: Path) -> Known:
    """Make the undisturbed runs."""
    make_outside(root)
    scene = Scene(root, random.Random(0))
    folders, events = {}, {}

    def keep(state: str) -> None:
        folders[state] = root / f"kept-{state}"
        shutil.copytree(scene.run, folders[state], symlinks=True)

    first = _sound(scene.call(*START), START)
    events["run"] = first.num_events
    numbers = numbers_of(scene)
    members = json.loads(scene.call("pareto", "RUN", "--json").text)
    chosen = str(members[0]["id"])
    keep("done")
    known = Known(folders, numbers, events, chosen)
    words = retrain_words(known)
    second = _sound(scene.call(*words), words)
    events["retrain"] = second.num_events
    numbers |= {"retrained": retrained_of(scene)}
    keep("retrained")
    shutil.rmtree(scene.run)
    shutil.copytree(folders["done"], scene.run)
    scene.call(*words, at=second.num_events // 2, trouble=kill)
    keep("half retrained")
    shutil.rmtree(scene.run)
    scene.call(*START, at=first.num_events // 2, trouble=kill)
    keep("half")
    shutil.rmtree(scene.run)
    return known


def _sound(end: End, words: tuple[str, ...]) -> End:
    if end.status != 0 or "Traceback" in end.text:
        raise SystemExit(f"Without any trouble, {' '.join(words)} ended so: {end.text[-3000:]}")
    return end


def make_outside(root: Path) -> None:
    """Make what a user has beside the run: the images, the space, documents."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (root / "tiny.yaml").write_text(SPACE, encoding="utf-8")
    for pool, count in (("train", 20), ("test", 10)):
        for label in range(2):
            folder = root / "images" / pool / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 128, (8, 8, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    for name in ("thesis.txt", "photos/one.txt", "photos/two.txt", "data/images.npy"):
        path = root / "documents" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} {random.Random(name).random()}", encoding="utf-8")


def state_of(folder: Path) -> dict[str, str]:
    """Digest everything below a folder, without following links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def numbers_of(scene: Scene) -> dict[str, Any]:
    """Return what a search found: the accuracy of every network that was judged, by its name."""
    from search.record.record import Record

    with Record.open(scene.run / "record.db") as record:
        done = record.trials(state="done")
        return {
            f"{t.key} {t.fidelity} {t.seed}": (t.measured.correct, t.measured.total) for t in done
        }


def retrained_of(scene: Scene) -> dict[str, Any]:
    """Return what a retraining left: its accuracies, and a digest of its weights."""
    (out,) = (path.parent for path in (scene.run / "retrain").glob("*/result.json"))
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    return {"raw": result["raw"], "ema": result["ema"], "weights": weights}


def kill() -> None:
    """End as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)
