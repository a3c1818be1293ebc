"""Networks on a GPU that is not there: every tensor that they make must be made on it.

Fake tensors have shapes, dtypes and devices and no data; operators refuse those of two devices.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from searchspace import preset
from supernet.network.supernet import build_subnet

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.7" and not torch.cuda.is_available(),
    reason="torch 2.6 asks the GPU's driver even for fake tensors",
)

# One for each kind of mixer, family of networks and norm.
PRESETS = (
    "swin_t",
    "swin_t_bn",
    "dwconv_t",
    "d_dwconv_t",
    "id_dwconv_t",
    "net6n_t",
    "net7n_t",
    "ddf_swin_t",
    "elsa_swin_t",
    "local_mlp_t_sp",
    "volo_d1_lsa",
    "elsa_volo_d1",
    "twins_svt_s",
)


def to_fake_gpu(network: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by fake ones on a GPU."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = mode.from_tensor(parameter).detach().to("cuda")
                module._parameters[name] = nn.Parameter(fake)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer).to("cuda")


@pytest.mark.parametrize("name", PRESETS)
def test_networks_make_their_tensors_on_the_device_of_their_input(name: str) -> None:
    network, mode = build_subnet(preset(name)), FakeTensorMode(allow_non_fake_inputs=False)

    with mode, torch.no_grad():
        to_fake_gpu(network, mode)
        images = torch.randn(2, 3, 224, 224, device="cuda")
        results = network.train()(images), network.eval()(images)

    assert [y.device.type for y in results] == ["cuda", "cuda"]
    assert [y.shape for y in results] == [(2, 1000), (2, 1000)]


def test_a_tensor_on_the_cpu_would_be_found() -> None:
    class Careless(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.arange(4)

    network, mode = Careless(4, 4), FakeTensorMode(allow_non_fake_inputs=False)

    with mode, torch.no_grad():
        to_fake_gpu(network, mode)
        images = torch.randn(2, 4, device="cuda")
        with pytest.raises(RuntimeError, match=r"on the same device|two different devices"):
            network(images)
