"""Laws of export and eval: others get the same logits, without this package or torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from search.retraining.evaluate import evaluate_retrained
from search.retraining.export import export_retrained
from search.retraining.finished import find_retrained
from search.retraining.network import RetrainOptions, retrain
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, Elsa, NeighborhoodAttention, WindowAttention
from supernet.data.image_data import write_description
from tests.hub import stand_in_hub
from tests.tiny_data import changed, noise, tiny_data

MIXERS = (
    DepthwiseConv(kernel_size=3),
    Elsa(kernel_size=3, num_heads=2, lam=1.0, gamma=1.0),
    NeighborhoodAttention(kernel_size=3, num_heads=2),
    WindowAttention(window_size=2, num_heads=2),
)
ARCHITECTURE = Architecture(
    img_size=8, patch_size=2, num_classes=3, stages=(Stage(dim=8, mixers=MIXERS),)
)
SWIN = ARCHITECTURE.replace(
    stages=(
        Stage(dim=8, mixers=(WindowAttention(window_size=2, num_heads=2),) * 2, mlp_ratio=2.0),
        Stage(dim=16, mixers=(WindowAttention(window_size=2, num_heads=4),)),
    )
)
# A process that has timm, and this package only where the first argument says so.
WITH_TIMM = """
import sys
import numpy, timm, torch
if sys.argv[1] == "mixer-search":
    import supernet
network = timm.create_model("local-dir:" + sys.argv[2], pretrained=True).eval()
with torch.no_grad():
    logits = network(torch.from_numpy(numpy.load(sys.argv[3])))
assert ("supernet" in sys.modules) == (sys.argv[1] == "mixer-search")
numpy.save(sys.argv[4], logits.numpy())
"""
# A process that has torch and neither timm nor this package.
WITH_TORCH = """
import sys
import numpy, torch
network = torch.export.load(sys.argv[1]).module()
with torch.no_grad():
    logits = network(torch.from_numpy(numpy.load(sys.argv[2])))
assert not {"timm", "supernet"} & set(sys.modules)
numpy.save(sys.argv[3], logits.numpy())
"""
# A process that may import onnxruntime and numpy, and neither torch nor this package.
WITHOUT_TORCH = """
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = numpy.load(sys.argv[2])
(logits,) = session.run(None, {"images": images})
assert not {"torch", "timm", "supernet"} & set(sys.modules)
numpy.save(sys.argv[3], logits)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run's folder with finished retrainings: network 7 mixes mixers, 8 is a Swin."""
    run = tmp_path_factory.mktemp("run")
    (run / "data").mkdir()
    data = tiny_data(run / "data", *noise(40, 8, num_classes=3), num_test=12)
    write_description(data)
    recipe = changed("micro", epochs=2, warmup_epochs=0, batch_size=8)
    for number, architecture in ((7, ARCHITECTURE), (8, SWIN)):
        out = run / "retrain" / f"{number}-micro-2e-s0"
        retrain(architecture, data, recipe, RetrainOptions(out=out))
    return run


def logits_of(script: str, arguments: list[str], images: Tensor, folder: Path) -> Tensor:
    """Run a script in a fresh process with arguments, a file of images and one for logits."""
    np.save(folder / "images.npy", images.numpy())
    files = [str(folder / name) for name in ("images.npy", "logits.npy")]
    is_ours = "mixer-search" in arguments
    environment = {k: v for k, v in os.environ.items() if is_ours or k != "PYTHONPATH"}
    command = [sys.executable, "-c", script, *arguments, *files]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return torch.from_numpy(np.load(folder / "logits.npy"))


@pytest.mark.parametrize(
    ("number", "format_", "packages"),
    [(7, "safetensors", "mixer-search"), (8, "timm", "timm")],
)
def test_a_fresh_process_with_timm_gives_the_networks_logits(
    folder: Path, tmp_path: Path, number: int, format_: str, packages: str
) -> None:
    (written,) = export_retrained(f"{folder}:{number}", [format_], tmp_path)
    images = torch.randn(3, 3, 8, 8)

    found = logits_of(WITH_TIMM, [packages, str(written.path.parent)], images, tmp_path)

    with torch.no_grad():
        expected = find_retrained(f"{folder}:{number}").network()(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_network_that_timm_has_not_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    with pytest.raises(ValueError, match=r"class of its own for Swin .* Use --format safetensors"):
        export_retrained(f"{folder}:7", ["safetensors", "timm"], out)

    assert not out.exists()


@pytest.mark.timeout(300)
def test_an_exported_network_is_pushed_in_the_layout_that_timm_loads(
    folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "search", "export", f"{folder}:7", "--out", str(tmp_path)]
    with stand_in_hub() as hub:
        settings = {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "right",
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [*command, "--push", "ada/found"],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert f"pushed to {hub.address}/ada/found" in done.stdout
    pushed = hub.repositories["ada/found"]
    assert pushed["model.safetensors"] == (tmp_path / "model.safetensors").read_bytes()
    assert {"config.json", "architecture.json"} <= set(pushed)


@pytest.mark.parametrize(
    ("push", "formats", "message"),
    [("found", ["safetensors"], "USER/NAME"), ("ada/found", ["torch"], "safetensors or timm")],
)
def test_a_push_that_cannot_be_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, push: str, formats: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        export_retrained(f"{folder}:7", formats, tmp_path / "out", push=push)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_onnx_gives_the_networks_logits_in_a_process_without_torch(
    folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="The extra 'export' is not installed.")
    network = find_retrained(f"{folder}:7").network()

    written = export_retrained(f"{folder}:7", ["onnx", "torch"], tmp_path)

    for count in (1, 5):
        images = torch.randn(count, 3, 8, 8)
        with torch.no_grad():
            expected = network(images)
        found = logits_of(WITHOUT_TORCH, [str(tmp_path / "model.onnx")], images, tmp_path)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        found = logits_of(WITH_TORCH, [str(tmp_path / "model.pt2")], images, tmp_path)
        torch.testing.assert_close(found, expected)
    assert [item.path.name for item in written] == ["model.pt2", "model.onnx"]


def test_safetensors_hold_the_weights_that_count_and_say_what_images_they_take(
    folder: Path, tmp_path: Path
) -> None:
    found = find_retrained(f"{folder}:7")

    export_retrained(str(found.folder), ["safetensors"], tmp_path)

    expected = load_file(found.folder / "model_ema.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert Architecture.from_dict(config["model_args"]["architecture"]) == ARCHITECTURE
    assert config["pretrained_cfg"]["input_size"] == [3, 8, 8]
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.4, 0.3]
    assert config["num_classes"] == 3


@pytest.mark.parametrize("is_own", [True, False])
def test_weights_of_a_training_are_never_exported_over(
    folder: Path, tmp_path: Path, *, is_own: bool
) -> None:
    found = find_retrained(f"{folder}:7")
    out = found.folder if is_own else tmp_path / "other"
    out.mkdir(exist_ok=True)
    weights = out / "model.safetensors"
    if not is_own:
        weights.write_bytes(b"of an import")
    before = weights.read_bytes()

    with pytest.raises(ValueError, match="results are never overwritten"):
        export_retrained(f"{folder}:7", ["safetensors"], out)

    assert weights.read_bytes() == before
    assert not (out / "config.json").exists()


def test_eval_finds_the_accuracy_of_the_retraining_and_times_it(
    folder: Path, tmp_path: Path
) -> None:
    result = find_retrained(f"{folder}:7").result

    found = evaluate_retrained(
        f"{folder}:7", data=None, real_labels=None, device="cpu", folder=tmp_path / "data"
    )

    assert found.accuracy == result.ema
    low, high = found.latency_interval_ms
    assert 0 < low <= found.latency_ms <= high
    assert found.to_json()["images_per_second"] > 0
    assert found.to_json()["images"] == 12


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("{run}:9", "Network 9 .* has no finished retraining. Run: search retrain"),
        ("{run}:x", "neither RUN:ID nor the folder"),
        ("elsewhere", "neither RUN:ID nor the folder"),
    ],
)
def test_what_is_not_there_is_refused(folder: Path, target: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_retrained(target.format(run=folder))


def test_an_unknown_format_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown format 'pickle'\. Formats: safetensors, timm"):
        export_retrained(f"{folder}:7", ["pickle"], None)
