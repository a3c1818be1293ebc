"""A network is pushed to a hub and loaded from it by timm; the hub is one of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, Elsa
from supernet.exchange.hub import check_repository
from supernet.exchange.timm_models import TimmNetwork
from tests.hub import StandInHub, stand_in_hub

ROOT = Path(__file__).parents[3]
MIXERS = (Elsa(kernel_size=3, num_heads=2), DepthwiseConv(kernel_size=3))
ARCHITECTURE = Architecture(
    img_size=16, patch_size=4, num_classes=3, stages=(Stage(dim=8, mixers=MIXERS),)
)
PUSH = """
import sys
from pathlib import Path
from supernet.exchange.hub import push_to_hub
print(push_to_hub(Path(sys.argv[1]), sys.argv[2]))
"""
LOAD = """
import sys
import timm, torch, supernet
from safetensors.torch import load_file, save_file
network = timm.create_model("hf-hub:" + sys.argv[2], pretrained=True).eval()
with torch.no_grad():
    save_file({"logits": network(load_file(sys.argv[1])["images"])}, sys.argv[1])
"""


def run(
    script: str, *arguments: str, hub: StandInHub, home: Path, token: str = "right"
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process whose hub is the one of this machine."""
    settings = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a network in the layout of timm's hub, with more files beside it."""
    torch.manual_seed(0)
    network = TimmNetwork(ARCHITECTURE)
    network.default_cfg["architecture"] = "mixer_search"
    network._model_args = {"architecture": ARCHITECTURE}
    save_for_hf(network, tmp_path / "net", safe_serialization=True)
    (tmp_path / "net" / "model.onnx").write_bytes(b"stays here")
    return tmp_path / "net"


@pytest.mark.timeout(300)
def test_a_pushed_network_is_loaded_from_the_hub_with_its_logits(
    folder: Path, tmp_path: Path
) -> None:
    images = torch.randn(2, 3, 16, 16)
    exchanged = tmp_path / "images.safetensors"
    save_file({"images": images}, exchanged)
    with stand_in_hub() as hub:
        pushed = run(PUSH, str(folder), "ada/found", hub=hub, home=tmp_path / "home")
        assert pushed.returncode == 0, pushed.stderr
        assert pushed.stdout.strip() == f"{hub.address}/ada/found"
        assert set(hub.repositories["ada/found"]) == {"config.json", "model.safetensors"}

        loaded = run(LOAD, str(exchanged), "ada/found", hub=hub, home=tmp_path / "other")

    assert loaded.returncode == 0, loaded.stderr
    network = TimmNetwork(ARCHITECTURE).eval()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    torch.testing.assert_close(load_file(exchanged)["logits"], network(images))


@pytest.mark.timeout(300)
def test_a_refused_push_says_how_to_log_in_and_where_the_files_are(
    folder: Path, tmp_path: Path
) -> None:
    with stand_in_hub() as hub:
        done = run(PUSH, str(folder), "ada/found", hub=hub, home=tmp_path / "home", token="wrong")
        assert hub.repositories == {}
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ValueError: Could not push to ada/found")
    assert "hf auth login" in message
    assert str(folder) in message


@pytest.mark.parametrize("name", ["found", "ada/", "/found", "a/b/c", "ada/fo und", "../x", ""])
def test_what_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="USER/NAME"):
        check_repository(name)
