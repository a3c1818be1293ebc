"""A kit: files made with torch, measured without it, and what is refused of a stranger's folder."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="timing ONNX files needs onnxruntime: install [latency]")
pytest.importorskip("torch", "2.11", reason="tracing parts of networks needs torch 2.11")
pytest.importorskip("onnxscript", reason="writing ONNX files needs onnxscript: install [latency]")

import numpy as np
import torch

from search.deployed.exporting import Wanted, export_front, export_kit, representative, write_file
from search.deployed.fitting import Times, fit_table
from search.deployed.kit import CALL, KIT, Kit, measure_kit
from search.deployed.sessions import open_network
from searchspace.deployment import Deployment
from searchspace.latency_table import LatencyTable, Part, macro_of, parts_of
from searchspace.mixers import DepthwiseConv, LocalMlp, WindowAttention
from searchspace.space import MixerChoices, SearchSpace, StageChoices
from supernet.network import build_subnet
from tests.tiny_trials import network

ROOT = Path(__file__).parents[3]
FP32 = Deployment(target="onnxruntime", batch=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit")
    one = network(1)
    wanted = Wanted(macro=macro_of(one), networks=[one], fitted=[], checked=[one])
    export_kit(folder, wanted, FP32)
    return folder


def test_files_have_the_batch_and_give_what_torch_gives(tmp_path: Path) -> None:
    subnet = build_subnet(network(1)).eval()
    images = torch.randn(2, 3, network(1).img_size, network(1).img_size)
    with torch.no_grad():
        expected = subnet(images).numpy()
    write_file(tmp_path / "a.onnx", subnet, images, FP32)

    opened = open_network(tmp_path / "a.onnx", FP32, threads=1)

    assert opened.shape == tuple(images.shape)
    np.testing.assert_allclose(opened.run(images.numpy()), expected, atol=1e-4)


def test_int8_is_near_float32_and_has_its_weights_in_bytes(tmp_path: Path) -> None:
    import onnx

    int8 = Deployment(target="onnxruntime", precision="int8", batch=2)
    subnet = build_subnet(network(1)).eval()
    images = torch.randn(2, 3, network(1).img_size, network(1).img_size)
    with torch.no_grad():
        expected = subnet(images).numpy()
    write_file(tmp_path / "a.onnx", subnet, images, int8, calibration=[images])

    found = open_network(tmp_path / "a.onnx", int8, threads=1).run(images.numpy())

    types = {one.data_type for one in onnx.load(str(tmp_path / "a.onnx")).graph.initializer}
    assert onnx.TensorProto.INT8 in types
    assert 0 < np.abs(found - expected).max() < 0.2 * np.abs(expected).max() + 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_only_windows_are_shifted_in_odd_blocks() -> None:
    conv = Part("stage0 odd", (8,), DepthwiseConv(kernel_size=3), 2.0)
    windows = [
        Part("stage0 odd", (8,), make(window_size=4, num_heads=2), 2.0)
        for make in (WindowAttention, LocalMlp)
    ]

    assert representative(conv) == Part("stage0 even", (8,), DepthwiseConv(kernel_size=3), 2.0)
    assert [representative(window) for window in windows] == windows


def test_a_table_of_a_space_covers_networks_whose_norms_have_two_names() -> None:
    # Stored as the default where all of a stage's blocks have it by default.
    mixers = {
        "window_attention": {"window_size": (4,), "num_heads": (2,)},
        "depthwise_conv": {"kernel_size": (3,)},
    }
    stage = StageChoices(
        dims=(8,), depths=(2,), norm="layer", choices=(MixerChoices(kinds=mixers),) * 2
    )
    space = SearchSpace(name="norms", img_size=16, patch_size=2, stages=(stage,))
    for seed in range(8):
        wanted = Wanted.of(space, 2, random.Random(seed))
        times = Times(
            call=[0.0],
            parts={part: [1.0] for part in wanted.parts},
            fitted=[(one, [1.0]) for one in wanted.fitted],
            checked=[(one, [1.0]) for one in wanted.checked],
        )
        empty = LatencyTable.begun(wanted.macro, FP32, device="here", threads=1)

        table, checked = fit_table(empty, times)

        table.check_space(space)
        assert len(checked) == 2


def test_a_kit_becomes_a_table_of_its_parts(made: Path) -> None:
    kit = Kit.load(made)
    found = measure_kit(made, kit, target="onnxruntime", threads=1, rng=random.Random(0))

    assert found.table is not None
    assert set(found.table.parts) == set(parts_of(network(1)))
    assert found.table.deployment == FP32
    assert found.checked[0].predicted_ms == found.table.predict(network(1))
    assert found.checked[0].measured.median_ms > 0


def test_an_edge_device_needs_neither_torch_nor_ray(made: Path, tmp_path: Path) -> None:
    blocked = [
        *("torch", "torchvision", "timm", "ray", "optuna", "pandas", "scipy", "sklearn"),
        *("matplotlib", "plotly", "safetensors", "onnx", "onnxscript", "moocore"),
    ]
    words = ["latency", "--parts", str(made), "--out", str(tmp_path / "table.json")]
    script = (
        f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\n"
        f"sys.argv[1:] = {words}\nfrom search.cli.app import main\nmain()"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "batches of 2, onnxruntime, fp32, on " in done.stdout
    assert set(LatencyTable.load(tmp_path / "table.json").parts) == set(parts_of(network(1)))


def test_a_front_is_measured_beside_what_its_run_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from search.cli.latency_commands import _measure_parts

    export_front(tmp_path, {7: network(1)}, {7: 1e6}, FP32)
    _measure_parts(tmp_path, "onnxruntime", 1, 0, out=None, csv_file=None)

    shown = capsys.readouterr().out
    assert "1000000.000" in shown
    assert "1 networks measured here" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["parts"][0].update(file="../part.onnx"), "without a folder"),
        (lambda data: data["parts"][0].update(file=3), "without a folder"),
        (lambda data: data["parts"][0].pop("dims"), "dims"),
        (lambda data: data.pop("deployment"), "deployment"),
        (lambda data: data["deployment"].update(batch=0), "1 to 65,536 images"),
        (lambda data: data["wholes"][0].update(colour="red"), "colour"),
        (lambda data: data["parts"][0].update(file="gone.onnx"), "misses 1 of the files"),
    ],
)
def test_a_strangers_kit_is_one_message(made: Path, tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "kit"
    shutil.copytree(made, folder)
    data = json.loads((folder / KIT).read_text())
    change(data)
    (folder / KIT).write_text(json.dumps(data))

    with pytest.raises(ValueError, match=message):
        Kit.load(folder)


def test_a_broken_file_of_a_kit_is_named(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kit"
    shutil.copytree(made, folder)
    (folder / CALL).write_bytes(b"no network")

    with pytest.raises(ValueError, match=rf"{CALL} cannot be read as a network for onnxruntime"):
        measure_kit(folder, Kit.load(folder), target="onnxruntime", threads=1, rng=random.Random(0))
