"""Recalibration by its definition: each norm's statistics are those of what it really gets.

What it gets is computed here, layer by layer in float64: the norms before it normalise by their
batch, and everything else is as when the network is judged.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DecoupledDynamicFilter, DepthwiseConv, DynamicDepthwiseConv
from searchspace.space import SearchSpace
from supernet.network.supernet import Supernet, build_subnet, extract
from supernet.training.calibration import calibration_images, recalibrate
from tests.supernet.network.test_supernet import randomise
from tests.tiny_data import noise, tiny_data


def batches(count: int = 3) -> list[Tensor]:
    """Return batches of different mean, spread and size."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(4 + 3 * i, 2, 5, 5, generator=generator).double() * (1 + i) + i
        for i in range(count)
    ]


def statistics(batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the means over batches of each channel's mean and unbiased variance."""
    rows = [batch.transpose(0, 1).flatten(1) for batch in batches]
    means = torch.stack([row.mean(1) for row in rows])
    # By hand: the sum of squared distances from the mean, over n - 1.
    spreads = torch.stack(
        [((row - row.mean(1, keepdim=True)) ** 2).sum(1) / (row.shape[1] - 1) for row in rows]
    )
    return means.mean(0), spreads.mean(0)


def normalised(norm: nn.BatchNorm2d, batch: Tensor) -> Tensor:
    """Normalise a batch by itself, as batch norm is defined, with its scale and shift."""
    mean = batch.mean((0, 2, 3), keepdim=True)
    spread = ((batch - mean) ** 2).mean((0, 2, 3), keepdim=True)
    scaled = (batch - mean) / (spread + norm.eps) ** 0.5
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def close(actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_each_norm_gets_the_mean_statistics_of_what_reaches_it() -> None:
    torch.manual_seed(0)
    first, second = nn.BatchNorm2d(2).double(), nn.BatchNorm2d(3).double()
    for norm in (first, second):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean, norm.running_var = torch.full_like(norm.bias, 7), norm.weight.abs() + 9
        norm.num_batches_tracked.fill_(5)  # type: ignore[union-attr, operator]
    conv = nn.Conv2d(2, 3, 3).double()
    # In train mode these two would throw half of it away.
    network = nn.Sequential(first, nn.Dropout(0.5), DropPath(0.5), conv, nn.ReLU(), second)
    images = batches()

    recalibrate(network, images)

    with torch.no_grad():
        inner = [conv(normalised(first, batch)).relu() for batch in images]
        for norm, inputs in ((first, images), (second, inner)):
            mean, spread = statistics(inputs)
            close(norm.running_mean, mean)
            close(norm.running_var, spread)
            assert norm.num_batches_tracked == len(images)


def test_statistics_of_a_pass_in_bfloat16_are_of_what_norms_get_there() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    images = [batch.float() for batch in batches()]

    recalibrate(network, images, amp="bf16")

    norm = network[1]
    assert norm.running_mean.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inputs = [network[0](batch) for batch in images]
    assert {given.dtype for given in inputs} == {torch.bfloat16}
    mean, spread = statistics([given.double() for given in inputs])
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.running_var.double(), spread, rtol=1e-4, atol=1e-4)


def test_what_was_changed_for_it_is_put_back() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2, momentum=0.3), nn.BatchNorm2d(2)).double().train()
    before = {name: value.clone() for name, value in network.named_parameters()}

    recalibrate(network, batches())

    assert [norm.momentum for norm in network] == [0.3, 0.1]
    assert not any(module.training for module in network.modules())
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name])
        assert value.grad is None


@pytest.mark.parametrize(("num_images", "sizes"), [(9, [4, 4]), (10, [4, 4, 2]), (1, [1])])
def test_a_last_image_alone_calibrates_nothing(
    tmp_path: Path, num_images: int, sizes: list[int]
) -> None:
    # Filters that are made of pooled maps have norms that see one value of each image.
    data = tiny_data(tmp_path, *noise(num_images + 8, 8))
    images = calibration_images(data, 4)

    assert [len(batch) for batch in images] == sizes
    if num_images > 1:
        stage = Stage(dim=8, mixers=(DynamicDepthwiseConv(kernel_size=3),))
        recalibrate(build_subnet(Architecture(img_size=8, patch_size=2, stages=(stage,))), images)


def test_recalibrating_again_forgets_what_was_there() -> None:
    once, twice = (nn.Sequential(nn.BatchNorm2d(2)).double() for _ in range(2))
    recalibrate(once, batches()[:1])

    recalibrate(twice, batches())
    recalibrate(twice, batches()[:1])

    for name, value in once.state_dict().items():
        close(twice.state_dict()[name].double(), value.double())


def test_a_network_without_batch_norms_is_left_in_eval_mode_and_not_run() -> None:
    def fail(*_: object) -> None:
        raise AssertionError("it was run")

    network = nn.Sequential(nn.LayerNorm(5), nn.Dropout(0.5)).train()
    network.register_forward_pre_hook(fail)

    recalibrate(network, [torch.zeros(1, 5)])

    assert not any(module.training for module in network.modules())


MIXERS = (DecoupledDynamicFilter(kernel_size=3, num_heads=2), DepthwiseConv(kernel_size=3))
ARCHITECTURE = Architecture(
    img_size=8, patch_size=2, num_classes=3, stages=(Stage(dim=8, mixers=MIXERS, norm="batch"),)
)


def inputs_of(network: nn.Module, images: list[Tensor]) -> dict[str, list[Tensor]]:
    """Run a network in eval mode whose norms normalise by their batch; note what each gets."""
    found: dict[str, list[Tensor]] = {}
    network.eval()
    for name, norm in network.named_modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            found[name] = []
            norm.register_forward_pre_hook(lambda _, given, n=name: found[n].append(given[0]))
            # Without statistics of its own, a norm takes those of the batch, in eval mode too.
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = None
    with torch.no_grad():
        for batch in images:
            network(batch)
    return found


def test_a_judged_network_has_the_statistics_of_its_calibration_images() -> None:
    torch.manual_seed(0)
    supernet = randomise(Supernet(SearchSpace.of(ARCHITECTURE), 0.5)).double()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    images = [torch.randn(6, 3, 8, 8).double() + shift for shift in range(2)]
    network = extract(supernet, ARCHITECTURE)
    expected = inputs_of(extract(supernet, ARCHITECTURE), images)

    recalibrate(network, images)

    assert expected
    for name, inputs in expected.items():
        norm = network.get_submodule(name)
        mean, spread = statistics([given.permute(0, 3, 1, 2) for given in inputs])
        close(norm.running_mean, mean)  # type: ignore[arg-type]
        close(norm.running_var, spread)  # type: ignore[arg-type]
    for name, value in supernet.state_dict().items():
        assert torch.equal(value, before[name]), name
