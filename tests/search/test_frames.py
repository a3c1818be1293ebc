"""A run as pandas frames, and the notebook that reads one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import search
from search.front import FrontQuery, judged_by
from search.record.record import Record
from search.report import export_front
from search.run_folder.folder import open_run
from search.terminal import format_count
from searchspace.cost import count
from tests.tiny_run import COMMAND, some_trials, write_run
from tests.tiny_trials import network, trial

NOTEBOOK = Path(__file__).parents[2] / "examples" / "read_a_run.ipynb"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


def test_every_trial_is_a_row(run: Path) -> None:
    frame = search.load_run(run).trials

    assert len(frame) == len(some_trials())
    row = frame[(frame.fidelity == "train-3e") & (frame.seed == 0)].set_index("key")
    first = row.loc[network(1).key]
    assert (first.top1, first.state, first.stage1) == (41.0, "done", "win2 h4 qr+rk")
    assert str(frame.finished.dt.tz) == "UTC"


def test_the_front_s_frame_marks_the_front(run: Path) -> None:
    frame = search.load_run(run).front

    assert frame.index[frame.on_front].tolist() == [1, 2, 3, 4, 5, 6, 7, 9]
    assert frame.index[frame.near_front].tolist() == [8]
    assert frame.front_probability.between(0, 1).all()
    assert (frame.low <= frame.top1).all()
    assert (frame.top1 <= frame.high).all()


def test_the_ledger_adds_up_to_what_was_spent(run: Path) -> None:
    loaded = search.load_run(run)

    with open_run(run) as folder:
        assert loaded.ledger.groupby("phase").seconds.sum().to_dict() == pytest.approx(
            folder.record.spent_by_phase()
        )
    assert loaded.settings.command == COMMAND


def test_a_network_that_was_retrained_larger_has_the_costs_of_that(tmp_path: Path) -> None:
    """``search retrain --img-size 32``: its MACs are not those of the 16 pixels of the search."""
    folder = write_run(
        tmp_path / "run",
        [
            trial(1, correct=150),
            trial(1, correct=180, fidelity="retrain-micro-9e-32px", origin="retrain"),
        ],
    )
    larger = network(1).replace(img_size=32)
    left = folder / "retrain" / "1-micro-9e-32px-s0"
    left.mkdir(parents=True)
    (left / "architecture.json").write_text(json.dumps(larger.to_dict()))
    frame = search.load_run(folder).trials.set_index("fidelity")
    assert frame.macs.to_dict() == {
        "train-3e": count(network(1)).macs,
        "retrain-micro-9e-32px": count(larger).macs,
    }
    with open_run(folder) as run:
        export_front(run, found=judged_by(run, FrontQuery()), html=run.report, png=None)
        page = run.report.read_text(encoding="utf-8")
    table = page[page.index("Searched and retrained") :]
    assert f'data-label="MACs"><div>{format_count(count(larger).macs)}</div>' in table
    (left / "architecture.json").write_text("spoilt")
    assert len(search.load_run(folder).trials) == 2


def test_learning_curves_have_a_frame_of_their_own(tmp_path: Path) -> None:
    first = trial(1, correct=100)
    losses = {1: 2.5, 2: 1.5, 10: 1.0}
    with_curve = replace(first, measured=replace(first.measured, losses=losses))
    loaded = search.load_run(write_run(tmp_path / "run", [with_curve, trial(2, correct=50)]))

    assert loaded.curves[["id", "epoch", "loss"]].to_numpy().tolist() == [
        [1, 1, 2.5],
        [1, 2, 1.5],
        [1, 10, 1.0],
    ]
    assert not [name for name in loaded.trials if name.startswith("loss")]


def test_a_run_without_results_has_empty_frames(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [trial(1, correct=1, state="waiting")])

    loaded = search.load_run(folder)

    assert loaded.trials.state.tolist() == ["waiting"]
    assert loaded.front.empty
    assert loaded.ledger.empty


def test_a_run_that_goes_on_is_read_beside_its_process(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with Record.open(folder / "record.db") as record:
        record.start_attempt("search", devices=2)

        ledger = search.load_run(folder).ledger

    assert ledger.iloc[-1].phase == "search"
    assert ledger.ended.isna().sum() == 1


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the folder of a run"):
        search.load_run(tmp_path)


def test_the_notebook_runs_cell_by_cell(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUN", str(run))
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names: dict[str, object] = {}

    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)

    printed = capsys.readouterr().out
    assert COMMAND in printed
    assert "front_probability" in printed
    assert "on the front with a chance of" in printed
    assert all(cell.get("outputs", []) == [] for cell in cells)
