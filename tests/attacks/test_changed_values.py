"""Files that others may write, each value changed in turn: they are read, or refused in words."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.reading import read_json
from search.cli.messages import message_of
from search.deployed import Kit
from search.deployed.kit import CALL, KIT, Whole
from search.phases.step_times import read_times, write_times
from search.plan import StepTimes
from search.record import Measured
from search.retraining.finished import read_result
from search.retraining.model_card import RetrainResult
from search.retraining.out_folder import RESULT_FILE
from search.run_folder.targets import load_target
from search.transferring.result import TransferResult
from search.transferring.result import read_result as read_transfer
from searchspace.deployment import Deployment
from searchspace.latency_table import Latency, LatencyTable, macro_of, parts_of
from searchspace.spec_file import load_space
from supernet.training.evaluation import Accuracy

GONE = object()
OTHERS = (
    *(None, "x", -1, 0, 1.5, True, [], {}, [1], 10**9, float("nan"), float("inf")),
    *("../x.onnx", "\x1b[31m", GONE),
)
SPACE = load_space("digits").replace(num_classes=10)
NETWORK = SPACE.sample(random.Random(0))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where every value stands; of lists only the first two."""
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for index, one in enumerate(value[:2]):
            yield from places(one, (*at, index))


def changed(whole: Any, at: tuple[Any, ...], other: object) -> Any:
    """Put another value in a place, or take away what is there."""
    if not at:
        return other
    whole = copy.deepcopy(whole)
    holder = whole
    for key in at[:-1]:
        holder = holder[key]
    if other is GONE:
        del holder[at[-1]]
    else:
        holder[at[-1]] = other
    return whole


def kit(folder: Path) -> Path:
    parts = parts_of(NETWORK)
    for name in (CALL, "part.onnx", "whole.onnx"):
        (folder / name).touch()
    wholes = [
        Whole(file="whole.onnx", name="1", architecture=NETWORK, is_fitted=True),
        Whole(file="whole.onnx", name="2", architecture=NETWORK, expected_ms=1.0),
    ]
    Kit(
        deployment=Deployment(target="onnxruntime"),
        macro=macro_of(NETWORK),
        parts=dict.fromkeys(parts, "part.onnx"),
        wholes=wholes,
    ).save(folder)
    return folder / KIT


def use_kit(path: Path) -> None:
    found = Kit.load(path.parent)
    table = LatencyTable.begun(found.macro, found.deployment, device="x", threads=1)
    for one in found.wholes:
        assert one.expected_ms is None or 0 <= one.expected_ms < math.inf
        assert all(part in found.parts for part in parts_of(one.architecture)) or not found.parts
    str(table)


def table(folder: Path) -> Path:
    begun = LatencyTable.begun(macro_of(NETWORK), Deployment(), device="x", threads=1)
    described = begun.to_dict() | {
        "parts": [
            {**part.to_dict(), "median_ms": 1.0, "low_ms": 0.5, "high_ms": 2.0}
            for part in dict.fromkeys(parts_of(NETWORK))
        ]
    }
    LatencyTable.from_dict(described).save(folder / "table.json")
    return folder / "table.json"


def use_table(path: Path) -> None:
    found = LatencyTable.load(path)
    assert found.predict(NETWORK) >= 0
    assert isinstance(next(iter(found.parts.values())), Latency)
    str(found)


def times(folder: Path) -> Path:
    steps = ((1_000, 0.1), (2_000, 0.2))
    found = StepTimes(supernet_step=0.1, trial_steps=steps, judge=0.3, steps_per_epoch=4)
    write_times(folder / "times.json", found)
    return folder / "times.json"


def use_times(path: Path) -> None:
    found = read_times(path)
    assert found.supernet_step + found.judge >= 0
    assert all(macs + seconds >= 0 for macs, seconds in found.trial_steps)


def retrained(folder: Path) -> Path:
    accuracy = Accuracy(correct=1, correct_top5=2, total=3)
    result = RetrainResult(
        key=NETWORK.key,
        params=1,
        macs=1,
        recipe="micro",
        epochs=9,
        seed=0,
        start="fresh",
        data="digits",
        data_fingerprint="",
        device="cpu",
        class_names=("a", "b"),
        mean=(0.5,),
        std=(0.2,),
        crop_pct=1.0,
        num_train_images=1,
        seconds=1.0,
        raw=accuracy,
        ema=accuracy,
    )
    (folder / RESULT_FILE).write_text(json.dumps(result.to_dict()))
    return folder / RESULT_FILE


def use_retrained(path: Path) -> None:
    found = read_result(path.parent)
    assert 0 <= found.accuracy.top1 <= 100
    assert all(std > 0 for std in found.std)
    assert found.epochs + found.seconds + found.params + found.macs is not None


def transferred(folder: Path) -> Path:
    result = TransferResult(
        key=NETWORK.key,
        task="instance",
        head="mask",
        params=1,
        macs=1,
        recipe="quick",
        length="12e",
        seed=0,
        start="fresh",
        data="d",
        data_source="d",
        data_fingerprint="",
        split="val",
        class_names=("a",),
        images=1,
        measured=Measured(ap_box=1.0),
        by_class=(1.0, None),
        device="cpu",
        seconds=1.0,
        identity="",
    )
    (folder / RESULT_FILE).write_text(json.dumps(result.to_dict()))
    return folder / RESULT_FILE


def use_transferred(path: Path) -> None:
    found = read_transfer(path.parent)
    assert sum(found.measured.to_json().values()) is not None
    assert found.params + found.macs + found.seconds + found.images is not None
    assert all(isinstance(name, str) for name in found.class_names)


def architecture(folder: Path) -> Path:
    (folder / "network.json").write_text(json.dumps(NETWORK.to_dict()))
    return folder / "network.json"


@pytest.mark.parametrize(
    ("make", "use"),
    [
        (kit, use_kit),
        (table, use_table),
        (times, use_times),
        (retrained, use_retrained),
        (transferred, use_transferred),
        (architecture, lambda path: load_target(str(path)).key),
    ],
    ids=["kit", "latency table", "times", "result", "transfer", "architecture"],
)
def test_every_changed_value_is_read_or_refused_in_words(
    make: Callable[[Path], Path], use: Callable[[Path], object], tmp_path: Path
) -> None:
    path = make(tmp_path)
    use(path)
    whole, refused = read_json(path), 0
    for at in list(places(whole)):
        for other in OTHERS:
            if other is GONE and not at:
                continue
            path.write_text(json.dumps(changed(whole, at, other)))
            try:
                use(path)
            except (ValueError, OSError) as error:
                message, refused = message_of(error), refused + 1
                assert message is not None, (at, other)
                # A table may be sound and of other networks.
                named = (str(path), str(path.parent), "The latency table")
                assert any(name in message for name in named), (at, other, message)
                assert len(message) < 600, (at, other, message)
            except Exception as error:
                raise AssertionError(f"{at} changed to {other!r}") from error
    assert refused > 30
