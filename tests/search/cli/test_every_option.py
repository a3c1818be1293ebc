"""Every option of every command is checked at the door: a wrong value is one message, status 2.

Nothing is written, nothing is read that takes long, and no traceback is shown. An option that is
new fails here until it has a wrong value.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from search.cli.app import app
from search.record.record import Record
from tests.search.cli.test_app import search
from tests.tiny_dense import write_data
from tests.tiny_run import write_run

BUDGET = ("--budget", "1cpu-minute")
LONG = "x" * 300

CELLS = ("swin_t", "--task", "semantic", "--recipe", "cells_semantic")

# What a command needs besides the option that is tried.
NEEDED: dict[str, tuple[str, ...]] = {
    "run": BUDGET,
    "plan": BUDGET,
    "status": ("run",),
    "pareto": ("run",),
    "select": ("run",),
    "compare": ("swin_t", "elsa_swin_t"),
    "latency": ("--check", "0"),
    "show": ("swin_t",),
    "transfer": (*CELLS, "--data", "cells", "--out", "new"),
    "predict": ("transferred", "image.png"),
    "retrain": ("run", "--arch", "1"),
    "import": ("checkpoint.pth", "--arch", "swin_t", "--out", "imported"),
    "ladder": ("run:1",),
    "export": ("run:7",),
    "eval": ("run:7",),
    "presets": (),
    "spaces": (),
    "recipes": (),
    "bench": (),
    "doctor": (),
}
NUMBER = ("0", "-1", "1.5", "many", "nan")
SEED = ("-1", "4294967296", "1.5", "nan")
DEVICE = ("gpu", "CPU", "")
TEACHER = ("nobody", "timm:resnet9000", "swin_t:missing.pth", "swin_t:checkpoint.pth", "run:3", "")
AMOUNT = ("-5", "0", "nan", "inf", "many", "")
OUTPUT = ("nowhere/file", "run", f"{LONG}")
WRONG: dict[str, dict[str, tuple[str, ...]]] = {
    "run": {
        "budget": ("5parsecs", "0cpu-minutes", "-1cpu-minutes", "nancpu-minutes", "1gpu-hour", ""),
        "data": ("nothing/here", "nothing.tar", "timm:"),
        "space": ("macro", "missing.yaml", "broken.yaml", "deep.yaml", "laughs.yaml", "latin.yaml"),
        "out": ("checkpoint.pth", "checkpoint.pth/run", LONG, "run"),
        "resume": ("",),
        "config": ("unknown", "missing.yaml", "broken.yaml", "list.yaml", "wrong.yaml"),
        "objectives": ("top1", "macs", "top1,speed", "top1,top1", ""),
        "max_macs": (*AMOUNT, "10"),
        "max_params": (*AMOUNT, "10"),
        "seed": SEED,
        "strategy": ("best", "fair", "graft", ""),
        "from_": ("nothing/here", "checkpoint.pth", "run", "run:3", "list.json", LONG, ""),
        "arch": ("swin_t", "unknown", ""),
        "unlabelled": ("nowhere", "checkpoint.pth", "cells", LONG, ""),
        "sampler": ("guidd", ""),
        "track": ("comet", ""),
        "task": ("detect", "", "semantic"),
        "start": ("nowhere", "run"),
        "share": ("x", "supernet", "supernet=nan", "supernet=2", "supernet=-.1", "nothing=.5"),
        "supernet_strategy": ("best", ""),
        "projections": ("some", ""),
        "kernels": ("round", ""),
        "latency_of": ("fast", "tensorrt", "cuda-graph"),
        "batch": NUMBER,
        "precision": ("fp8", "int8"),
        "latency_table": ("missing.json", "list.json", "deep.json", "checkpoint.pth", "run", ""),
        "max_latency": ("-5", "0", "nan", "inf", "many"),
        "max_memory": ("-5", "0", "nan", "inf", "many"),
        "img_size": (*NUMBER, "33"),
        "recipe": ("unknown", "missing.yaml", "broken.yaml", "swin_300e:gigantic"),
        "teacher": TEACHER,
        "storage": ("nothing://here", "checkpoint.pth"),
        "ray_address": ("127.0.0.1:1", "nonsense", ""),
        "record": ("mysql://host/db", "nonsense"),
    },
    "plan": {
        "budget": ("5parsecs", "0cpu-minutes", "1gpu-hour"),
        "space": ("macro", "missing.yaml", "broken.yaml"),
        "data": ("nothing/here",),
        "img_size": (*NUMBER, "33"),
        "recipe": ("unknown", "broken.yaml"),
        "teacher": TEACHER,
        "strategy": ("best",),
        "share": ("x", "supernet=nan"),
        "task": ("detect", ""),
        "devices": NUMBER,
        "ray_address": ("127.0.0.1:1", "nonsense", ""),
        "times": ("nothing/here", "checkpoint.pth"),
        "device": ("h1000", "h100"),
        "storage": ("nothing://here", "checkpoint.pth"),
        "save_times": OUTPUT,
    },
    "pareto": {
        "objectives": ("top1,speed", "speed"),
        "fidelity": ("train-77e",),
        "sort": ("beauty", ""),
        "max_macs": AMOUNT,
        "max_params": AMOUNT,
        "limit": ("macs=0", "macs", "speed=3", "macs=1M", "latency=3ms", "latency=nanms", ""),
        "latency_table": ("list.json", "missing.json"),
        "device": DEVICE,
        "csv": OUTPUT,
        "html": OUTPUT,
        "png": OUTPUT,
    },
    "select": {
        "top": NUMBER,
        "budget": ("5parsecs", "0cpu-minutes"),
        "objectives": ("top1,speed", "speed"),
        "fidelity": ("train-77e",),
        "max_macs": AMOUNT,
        "max_params": AMOUNT,
    },
    "compare": {"img_size": (*NUMBER, "33"), "device": DEVICE},
    "latency": {
        "space": ("macro", "broken.yaml"),
        "device": DEVICE,
        "target": ("fast", "tensorrt", ""),
        "precision": ("fp8", "int8", ""),
        "batch": NUMBER,
        "export": ("checkpoint.pth", "checkpoint.pth/new", LONG, "new"),
        "parts": ("nowhere", "run", "checkpoint.pth"),
        "num_classes": NUMBER,
        "check": ("-1", "1.5", "nan"),
        "threads": NUMBER,
        "seed": SEED,
        "out": OUTPUT,
        "csv_": OUTPUT,
    },
    "show": {
        "img_size": (*NUMBER, "33"),
        "task": ("detect", ""),
        # A head without a task, and of no task.
        "head": ("mask_rcnn", "retinanet", ""),
    },
    "transfer": {
        "task": ("detect", "", "instance"),
        "data": ("nothing/here", "checkpoint.pth", "run"),
        "recipe": ("unknown", "missing.yaml", "broken.yaml", "deep.yaml", "mask_rcnn_1x:tiny"),
        "arch": (*NUMBER, "77"),
        "start": ("missing.safetensors", "checkpoint.pth", "run"),
        "teacher": ("missing", "checkpoint.pth", "run", "timm:resnet10t", LONG, ""),
        "epochs": AMOUNT,
        "steps": NUMBER,
        "seed": SEED,
        "devices": (*NUMBER, "3"),
        "workers": ("-1", "1.5", "nan"),
        "out": ("checkpoint.pth", "run", LONG),
        "ray_address": ("127.0.0.1:1",),
    },
    "predict": {"out": ("checkpoint.pth", LONG), "device": DEVICE},
    "retrain": {
        "arch": (*NUMBER, "77"),
        "recipe": ("unknown", "broken.yaml"),
        "epochs": NUMBER,
        "seed": SEED,
        "inherit": ("",),
        "start": ("missing.safetensors", "checkpoint.pth", "run"),
        "img_size": (*NUMBER, "33"),
        "taps": ("7", "7:", "a:b", "77:9"),
        "token_labels": ("nowhere",),
        "devices": NUMBER,
        "workers": ("-1", "1.5", "nan"),
        "track": ("comet", ""),
        "teacher": TEACHER,
        # A folder alone needs a teacher.
        "unlabelled": ("nowhere", "checkpoint.pth", "cells", LONG, ""),
        "ray_address": ("127.0.0.1:1", "nonsense"),
    },
    "import": {
        "arch": ("unknown", "broken.yaml", "list.json", "deep.json"),
        "out": ("checkpoint.pth", f"{LONG}"),
    },
    "ladder": {
        "step": ("up",),
        "epochs": NUMBER,
        "seed": SEED,
        "device": DEVICE,
    },
    "export": {"format_": ("word", ""), "out": ("checkpoint.pth", LONG), "push": ("", "a/b/c")},
    "eval": {
        "data": ("nothing/here",),
        "real_labels": ("missing.json",),
        # Of a retraining; those of a transfer have their own tests.
        "scales": ("1,2", "x", ""),
        "device": DEVICE,
    },
    "bench": {
        "table": ("missing.json", "list.json", "deep.json", "checkpoint.pth"),
        "problem": ("hard",),
        "samplers": ("guidd", ""),
        "seeds": NUMBER,
        "evaluations": ("3", "-1", "nan"),
    },
    # It says what is wrong with each and ends with 1: that is what it is asked for.
    "doctor": {"data": (), "storage": ()},
}
# They have no wrong value: given or not.
FLAGS = {"flip", "knee", "near", "watch", "latency", "json_", "args", "help"}


def commands() -> dict[str, Any]:
    found: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return found


def options(command: str) -> dict[str, str]:
    """Return the options of a command by name, as they are typed."""
    return {
        str(option.name): max(option.opts, key=len)
        for option in commands()[command].params
        if option.param_type_name == "option" and option.name not in FLAGS
    }


def cases() -> Iterator[Any]:
    for command, wrong in WRONG.items():
        for name, values in wrong.items():
            for value in values:
                yield pytest.param(command, name, value, id=f"{command}-{name}-{value[:20]}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("door")
    write_run(folder / "run")
    write_data(folder / "cells", train=2, val=1)
    (folder / "checkpoint.pth").write_bytes(b"\x80\x04no pickle \xff")
    (folder / "broken.yaml").write_text("name: [a\n")
    (folder / "deep.yaml").write_text("a: " + "[" * 5000)
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    (folder / "laughs.yaml").write_text("\n".join(lines))
    (folder / "latin.yaml").write_bytes("name: größe\n".encode("latin-1"))
    (folder / "list.yaml").write_text("- budget\n")
    (folder / "wrong.yaml").write_text("budget: 1cpu-minute\nimg_size: 1.5\n")
    (folder / "list.json").write_text("[1, 2]")
    (folder / "deep.json").write_text("[" * 100_000)
    return folder


def contents(folder: Path) -> dict[str, object]:
    """Describe every file below a folder; of the record what it says, but not who looked at it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found: dict[str, object] = {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
        if not path.name.startswith(("record.db", "run.lock"))
    }
    with Record.open(folder / "run" / "record.db") as record:
        found["record"] = (record.get_meta("settings"), record.trials(), record.spent())
    return found


@pytest.mark.parametrize("command", sorted(NEEDED))
def test_every_option_has_a_wrong_value_here(command: str) -> None:
    assert set(options(command)) == set(WRONG.get(command, {}))


def test_every_command_is_here() -> None:
    assert set(commands()) == set(NEEDED)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("command", "name", "value"), list(cases()))
def test_a_wrong_value_is_one_message_and_nothing_else(
    command: str,
    name: str,
    value: str,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(made)
    option = options(command)[name]
    flags = {"--resume", "--inherit"}
    words = [option] if option in flags else [option, value]
    before = contents(made)

    # The option comes last, so that it takes the place of one that the command needs.
    assert search(command, *NEEDED[command], *words) == 2

    error = capsys.readouterr().err
    assert [line[:7] for line in error.splitlines()].count("Error: ") == 1
    assert "Traceback" not in error
    if value in (*NUMBER, *SEED):
        assert value in error
    assert contents(made) == before
