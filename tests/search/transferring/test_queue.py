"""Members of a run as backbones: charged on their own, on no front, resumed by the same command."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from search.cli.dense_commands import find_transfer
from search.record.record import Record
from search.report.backbones import backbones_content, find_backbones
from search.results.candidates import judged_at, retrained, shown_fidelity
from search.retraining import training_queue
from search.retraining.attempt import Ended
from search.retraining.training_queue import FAILED, FULL_DISK
from search.run_folder.folder import own_run
from search.transferring.queue import TransferPlan, transfer_members
from supernet.data.dense import open_dense_data
from tests.attacks.retraining_stubs import Devices, Fate
from tests.tiny_dense import recipe, write_data
from tests.tiny_run import write_run


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_members_of_a_run_are_transferred_recorded_and_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    data = open_dense_data(
        str(write_data(tmp_path / "cells", train=4, val=2)), "semantic", unpack_to=tmp_path
    )
    chosen = recipe("cells_semantic", steps=2)
    plan = TransferPlan(recipe=chosen, data=data, data_source="cells", start="fresh")
    with Record.open(tmp_path / "run" / "record.db") as record:
        spent, before = record.spent(), shown_fidelity(record.trials())
        kept = retrained(record.trials())

    charged = []
    for _ in range(2):
        said = io.StringIO()
        with own_run(tmp_path / "run") as run:
            assert transfer_members(run, [3, 7], plan, console=Console(file=said)) is None
            trials = run.record.trials()
            charged.append(run.record.spent_by_phase()["transfer"])
            assert run.record.spent() - charged[-1] == pytest.approx(spent)
        assert said.getvalue().count("mIoU") == 2
    # The second time nothing is trained.
    assert charged[0] > 0
    assert charged[1] == charged[0]
    found = [one for one in trials if one.fidelity.startswith("transfer-")]
    assert {one.architecture_id for one in found} == {3, 7}
    assert all(one.state == "done" and 0 < one.measured.miou < 100 for one in found)
    assert shown_fidelity(trials) == before
    assert retrained(trials) == kept

    content = backbones_content(find_backbones(trials, tmp_path / "run"), judged_at(trials))
    assert content is not None
    assert [row[0] for row in content["rows"]] == [3, 7]
    assert "over 2 networks" in content["taus"][0]
    assert [len(pictures) for _, _, pictures in content["pictures"]] == [2, 2]
    # Both papers together have so many rows on ADE20K.
    assert len(content["published"]) == 24


def test_what_decides_a_transfer_is_in_its_name(tmp_path: Path) -> None:
    data = open_dense_data(
        str(write_data(tmp_path / "cells", train=4, val=2)), "semantic", unpack_to=tmp_path
    )

    def label(start: dict[str, torch.Tensor] | None = None, **changes: float) -> str:
        chosen = recipe("cells_semantic", steps=2, **changes)
        plan = TransferPlan(recipe=chosen, data=data, data_source="cells")
        return plan.label("from-x", start)

    weights = {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    others = {"a": torch.tensor([1.0, 2.5]), "n": torch.tensor(3)}
    found = [label(), label(lr=0.5), label(weights), label(others)]
    assert len(set(found)) == 4
    assert label(dict(weights)) == label(weights)
    assert all(one.startswith("tiny_cells_semantic-2s-from-x-") for one in found)


def test_a_transfer_is_found_by_run_and_id(tmp_path: Path) -> None:
    def folder(*parts: str) -> Path:
        path = tmp_path.joinpath(*parts)
        path.mkdir(parents=True)
        (path / "result.json").write_text("{}")
        return path

    first = folder("run", "transfer", "7-cells_semantic-240s-fresh-s0")
    assert find_transfer(f"{tmp_path / 'run'}:7") == first
    assert find_transfer(f"{tmp_path / 'run'}:77") is None
    second = folder("run", "transfer", "7-cells_semantic-240s-fresh-s1")
    with pytest.raises(ValueError, match="transferred 2 times") as refused:
        find_transfer(f"{tmp_path / 'run'}:7")
    assert str(second) in str(refused.value)
    # A network that was retrained is judged as a classifier.
    folder("run", "retrain", "7-micro-9e")
    assert find_transfer(f"{tmp_path / 'run'}:7") is None


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    """Let tasks run in this process, or end as a test says."""
    devices = Devices()
    monkeypatch.setattr(training_queue, "Cluster", lambda *, device, address: devices)
    monkeypatch.setattr(training_queue, "take_finished", devices.take_finished)
    return devices


def fate_of(end: str) -> Fate:
    """Let a task end so, without a result."""
    return lambda job: (Ended(end=end, cause="No space left on device"), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fate", "stopped_by", "state"),
    [
        (fate_of("full disk"), FULL_DISK, "waiting"),
        (fate_of("failed"), FAILED, "failed"),
    ],
)
def test_a_full_disk_is_no_failure_of_a_network_and_both_can_be_repeated(
    tmp_path: Path, devices: Devices, fate: Fate, stopped_by: str, state: str
) -> None:
    write_run(tmp_path / "run")
    data = open_dense_data(
        str(write_data(tmp_path / "cells", train=4, val=2)), "semantic", unpack_to=tmp_path
    )
    chosen = recipe("cells_semantic", steps=2)
    # The same network and seed twice is one.
    plan = TransferPlan(recipe=chosen, data=data, data_source="", start="fresh", seeds=(0, 0))
    devices.fates = [fate]
    said = io.StringIO()
    with own_run(tmp_path / "run") as run:

        def states() -> list[str]:
            return [t.state for t in run.record.trials() if t.fidelity.startswith("transfer-")]

        assert transfer_members(run, [3, 3], plan, console=Console(file=said)) == stopped_by
        assert states() == [state]

        assert transfer_members(run, [3, 3], plan, console=Console(file=said)) is None
        assert states() == ["done"]
    assert len(devices.submitted) == 2


def test_a_text_is_no_markup_where_a_transfer_says_it(tmp_path: Path, devices: Devices) -> None:
    write_run(tmp_path / "run")
    data = open_dense_data(
        str(write_data(tmp_path / "cells", train=4, val=2)), "semantic", unpack_to=tmp_path
    )
    plan = TransferPlan(
        recipe=recipe("cells_semantic", steps=2), data=data, data_source="", start="fresh"
    )
    devices.fates = [lambda job: (Ended(end="failed", cause="a [/red] b [x]"), None)]
    said = io.StringIO()
    with own_run(tmp_path / "run") as run:
        assert transfer_members(run, [3], plan, console=Console(file=said)) == FAILED
    assert "a [/red] b [x]" in said.getvalue()
