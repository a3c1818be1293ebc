"""Laws of the mixers that are convolutions, and of local MLP: definitions, reductions, extraction.

`tests/supernet/mixers/test_golden_convs.py` compares them with published code.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from searchspace.mixer_cost import count_mixer, count_norm
from searchspace.mixer_text import describe_mixer
from searchspace.mixers import (
    CONV_KINDS,
    DepthwiseConv,
    DynamicDepthwiseConv,
    InhomogeneousDepthwiseConv,
    Involution,
    LocalMlp,
    Mixer,
    NeighborhoodAttention,
    WindowAttention,
)
from supernet.kernels import depthwise_conv
from supernet.mixers import MIXERS
from supernet.mixers.inhomogeneous import InvolutionMixer
from supernet.mixers.neighborhood_attention import NeighborhoodAttentionMixer
from supernet.mixers.sharing import Place
from supernet.mixers.window_attention import WindowAttentionMixer

DIM, SIZE = 12, 7
PLACE = Place(dim=DIM, size=SIZE, block=1)  # an odd block: windows shift

SETTINGS: tuple[Mixer, ...] = (
    DepthwiseConv(kernel_size=3),
    DepthwiseConv(kernel_size=7, channels_per_filter=4),
    DepthwiseConv(kernel_size=5, channels_per_filter=12),
    DepthwiseConv(kernel_size=5, shared_positions=False),
    DepthwiseConv(kernel_size=3, channels_per_filter=6, shared_positions=False),
    DynamicDepthwiseConv(kernel_size=3),
    DynamicDepthwiseConv(kernel_size=7),
    InhomogeneousDepthwiseConv(kernel_size=3, num_groups=12),
    InhomogeneousDepthwiseConv(kernel_size=5, num_groups=4),
    InhomogeneousDepthwiseConv(kernel_size=7, num_groups=1),
    Involution(kernel_size=3, group_channels=4),
    Involution(kernel_size=7, group_channels=12),
    Involution(kernel_size=5, group_channels=6, reduction=3),
    LocalMlp(window_size=3, num_heads=4),
    LocalMlp(window_size=3, num_heads=2),
    LocalMlp(window_size=4, num_heads=12),
    LocalMlp(window_size=7, num_heads=1),
    LocalMlp(window_size=3, num_heads=12, shared_positions=True),
    LocalMlp(window_size=5, num_heads=3, shared_positions=True),
    LocalMlp(window_size=9, num_heads=2, shared_positions=True),
)
# One setting of each path through the modules.
PATHS = tuple(SETTINGS[index] for index in (1, 4, 6, 8, 12, 13, 17))


def name_of(mixer: Mixer) -> str:
    return describe_mixer(mixer).replace(" ", "-")


each_setting = pytest.mark.parametrize("mixer", SETTINGS, ids=name_of)
each_path = pytest.mark.parametrize("mixer", PATHS, ids=name_of)


def build(*options: Mixer, place: Place = PLACE, seed: int = 0) -> Any:
    """Build a module whose weights and statistics are all random, in eval mode and float64."""
    torch.manual_seed(seed)
    module: Any = MIXERS[options[0].kind](options, place=place).double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    return module


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
@each_setting
def test_a_setting_taken_out_computes_what_it_computes_among_others(
    mixer: Mixer, training: bool
) -> None:
    others = [other for other in SETTINGS if other.kind == mixer.kind]
    among, alone = build(*others).train(training), build(mixer, seed=5)
    alone.load_state_dict({name: value.clone() for name, value in among.select(mixer).items()})
    x = noise(2, SIZE, SIZE, DIM)
    close(alone.train(training)(x, mixer), among(x, mixer))


@each_setting
def test_a_training_step_is_the_same_inside_and_outside(mixer: Mixer) -> None:
    others = [other for other in SETTINGS if other.kind == mixer.kind]
    among, alone = build(*others).train(), build(mixer).train()
    alone.load_state_dict({k: v.detach().clone() for k, v in among.select(mixer).items()})
    x = noise(2, SIZE, SIZE, DIM)
    for module in (among, alone):
        module(x, mixer).square().sum().backward()
    # The gradient of a slice is the slice of the gradient, and there is none outside it.
    gradients = build(*others)
    for name, parameter in gradients.named_parameters():
        gradient = among.get_parameter(name).grad
        parameter.data = torch.zeros_like(parameter) if gradient is None else gradient
    selected = gradients.select(mixer)
    inside = 0.0
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(selected[name], parameter.grad, rtol=1e-9, atol=1e-9)
        inside += parameter.grad.abs().sum().item()
    everywhere = sum(p.detach().abs().sum().item() for p in gradients.parameters())
    assert everywhere == pytest.approx(inside, rel=1e-9)


CENTRE = [6, 7, 8, 11, 12, 13, 16, 17, 18]  # of 5 x 5
FIRST = [0, 3, 6, 9]  # channels, filters or heads that begin with each of four groups


@pytest.mark.parametrize(
    ("fine", "coarse", "slices"),
    [
        (
            DepthwiseConv(kernel_size=5),
            DepthwiseConv(kernel_size=3, channels_per_filter=3),
            {"weight": (CENTRE, FIRST)},
        ),
        (
            DepthwiseConv(kernel_size=5, shared_positions=False),
            DepthwiseConv(kernel_size=3, channels_per_filter=3, shared_positions=False),
            {"position_weight": (CENTRE, list(range(SIZE**2)), FIRST)},
        ),
        (
            DynamicDepthwiseConv(kernel_size=5),
            DynamicDepthwiseConv(kernel_size=3),
            {"generator.weight": (CENTRE,), "generator.bias": (CENTRE,)},
        ),
        (
            InhomogeneousDepthwiseConv(kernel_size=5, num_groups=12),
            InhomogeneousDepthwiseConv(kernel_size=3, num_groups=4),
            {"generator.weight": (CENTRE, FIRST), "generator.bias": (CENTRE, FIRST)},
        ),
        (
            Involution(kernel_size=5, group_channels=1),
            Involution(kernel_size=3, group_channels=3),
            {"generators.4.weight": (CENTRE, FIRST), "generators.4.bias": (CENTRE, FIRST)},
        ),
        (
            LocalMlp(window_size=5, num_heads=12, shared_positions=True),
            LocalMlp(window_size=3, num_heads=4, shared_positions=True),
            {"pairs": (CENTRE, CENTRE, FIRST)},
        ),
        (
            LocalMlp(window_size=3, num_heads=12),
            LocalMlp(window_size=3, num_heads=4),
            {"window_pairs.3": (list(range(9)),) * 3 + (FIRST,)},
        ),
    ],
)
def test_smaller_kernels_are_centres_and_coarser_groups_the_row_of_their_first_channel(
    fine: Mixer, coarse: Mixer, slices: dict[str, tuple[list[int], ...]]
) -> None:
    module = build(fine, coarse)
    selected, whole = module.select(coarse), module.state_dict()
    for name, indices in slices.items():
        expected = whole[name]
        for axis, index in enumerate(indices):
            expected = expected.index_select(axis, torch.tensor(index))
        close(selected[name], expected)


@each_setting
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_the_closed_form_counts_the_built_module(
    mixer: Mixer, qkv_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXER_KERNELS", "torch")  # the naive operators have no FLOP formula
    place = Place(dim=DIM, size=SIZE, qkv_bias=qkv_bias)
    module = build(mixer, place=place)
    cost = count_mixer(mixer, dim=DIM, size=SIZE, qkv_bias=qkv_bias)
    before = 0 if mixer.kind in CONV_KINDS else count_norm(DIM).params
    assert sum(p.numel() for p in module.parameters()) + before == cost.params
    with FlopCounterMode(display=False) as counter:
        module(noise(1, SIZE, SIZE, DIM), mixer)
    assert counter.get_total_flops() == 2 * cost.macs


def test_one_filter_for_neighbouring_channels_is_one_convolution_of_their_maps() -> None:
    mixer = DepthwiseConv(kernel_size=5, channels_per_filter=4)
    module = build(mixer)
    x = noise(2, 6, 9, DIM)
    planes = x.permute(0, 3, 1, 2)
    expected = []
    for channel in range(DIM):
        kernel = module.weight[:, channel // 4].view(1, 1, 5, 5)
        bias = module.bias[channel : channel + 1]
        expected.append(F.conv2d(planes[:, channel : channel + 1], kernel, bias, padding=2))
    close(module.convolve(x, mixer), torch.cat(expected, 1).permute(0, 2, 3, 1))


def test_filters_of_each_position_follow_their_definition() -> None:
    mixer = DepthwiseConv(kernel_size=3, channels_per_filter=2, shared_positions=False)
    module = build(mixer, place=Place(dim=4, size=4))
    x = noise(2, 4, 4, 4)
    expected = module.bias.expand(2, 4, 4, 4).clone()
    for row, column, tap in ((r, c, t) for r in range(4) for c in range(4) for t in range(9)):
        there = (row + tap // 3 - 1, column + tap % 3 - 1)
        if min(there) >= 0 and max(there) < 4:
            weights = module.position_weight[tap, 4 * row + column].repeat_interleave(2)
            expected[:, row, column] += weights * x[:, there[0], there[1]]
    close(module.convolve(x, mixer), expected)


def test_equal_filters_at_all_positions_are_a_depthwise_convolution() -> None:
    shared = DepthwiseConv(kernel_size=5, channels_per_filter=3)
    unshared = DepthwiseConv(kernel_size=5, channels_per_filter=3, shared_positions=False)
    module = build(shared, unshared)
    module.position_weight.data.copy_(module.weight.unsqueeze(1).expand(-1, SIZE**2, -1))
    x = noise(3, SIZE, SIZE, DIM)
    close(module(x, unshared), module(x, shared))


def test_a_constant_generator_is_a_static_convolution() -> None:
    """Generators whose last layer has only a bias leave nn.Conv2d(groups=C)."""
    x = noise(3, 6, 9, DIM)
    for mixer in (
        DynamicDepthwiseConv(kernel_size=5),
        InhomogeneousDepthwiseConv(kernel_size=5, num_groups=4),
        Involution(kernel_size=5, group_channels=3),
    ):
        module = build(mixer)
        generator = (
            module.generator(mixer) if isinstance(module, InvolutionMixer) else module.generator
        )
        generator.weight.data.zero_()
        groups = generator.bias.shape[1]
        conv = nn.Conv2d(DIM, DIM, 5, padding=2, groups=DIM).double()
        filters = generator.bias.t().repeat_interleave(DIM // groups, 0)
        conv.weight.data.copy_(filters.view(DIM, 1, 5, 5))
        conv.bias.data.copy_(getattr(module, "bias", torch.zeros(DIM)))
        close(module.convolve(x, mixer), conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_dynamic_filters_are_those_of_the_mean_of_their_image() -> None:
    mixer = DynamicDepthwiseConv(kernel_size=3)
    module = build(mixer)
    x = noise(2, 5, 4, DIM)
    for image in range(2):
        filters = module.generator(x[image].mean((0, 1))[None, None, None], DIM, 3)
        planes = x[image].permute(2, 0, 1)[None]
        y = F.conv2d(planes, filters.view(DIM, 1, 3, 3), module.bias, padding=1, groups=DIM)
        close(module.convolve(x, mixer)[image], y[0].permute(1, 2, 0))


def test_a_linear_generator_is_attention_of_queries_and_offsets_without_softmax() -> None:
    """Zhou et al. 2023, Eq. 4: q r^k alone with identity is the linear inhomogeneous filter."""
    conv = InhomogeneousDepthwiseConv(kernel_size=5, num_groups=4)
    attention = NeighborhoodAttention(kernel_size=5, num_heads=4, terms="qr", norm="identity")
    generated = build(conv)
    generator = generated.generator
    # Far from ReLU's corner the bottleneck is linear; the last bias takes the offset back.
    generator.norm = nn.Identity()
    generator.reduce.bias.data.fill_(100)
    generator.bias.data.copy_(-100 * generator.weight.sum(-1))
    attended = NeighborhoodAttentionMixer([attention], place=PLACE).double()
    weights = attended.attention
    # Every head has the generator's three hidden channels as its query; values stay what they are.
    eye = torch.eye(DIM).double()
    weights.in_proj.weight.data.copy_(torch.cat([generator.reduce.weight] * 4 + [eye]))
    weights.proj.weight.data.copy_(eye)
    assert weights.table_qr is not None
    weights.table_qr.data.copy_(generator.weight.flatten(1) * 3**0.5)  # queries are scaled
    x = noise(2, 6, 8, DIM)
    torch.testing.assert_close(
        generated.convolve(x, conv), attended(x, attention), rtol=0, atol=1e-9
    )


def test_involution_is_the_inhomogeneous_filter_without_the_first_bias() -> None:
    involution = Involution(kernel_size=5, group_channels=3)
    conv = InhomogeneousDepthwiseConv(kernel_size=5, num_groups=4)
    first, second = build(involution), build(conv)
    state = {
        name.replace("generators.4.", "generator."): v for name, v in first.state_dict().items()
    }
    second.load_state_dict(state | {"generator.reduce.bias": torch.zeros(DIM // 4)})
    x = noise(2, 6, 8, DIM)
    close(second(x, conv), first(x, involution))


def test_each_group_of_neighbouring_channels_has_its_own_filter() -> None:
    x = noise(1, 5, 5, DIM)
    for mixer in (
        InhomogeneousDepthwiseConv(kernel_size=3, num_groups=4),
        Involution(kernel_size=3, group_channels=3),
    ):
        module = build(mixer)
        before = module.convolve(x, mixer)
        generator = (
            module.generator(mixer) if isinstance(module, InvolutionMixer) else module.generator
        )
        generator.bias.data[:, 1] += 1
        changed = (module.convolve(x, mixer) - before).abs().amax((0, 1, 2)) > 0
        assert changed.nonzero().flatten().tolist() == [3, 4, 5]


def test_local_mlp_follows_its_definition_in_shifted_and_padded_windows() -> None:
    mixer = LocalMlp(window_size=4, num_heads=3)
    module = build(mixer)  # 7 tokens a side: windows of 4 pad them to 8, rolled by 2
    x = noise(1, SIZE, SIZE, DIM)
    value, proj = module.value, module.proj
    padded = F.pad(x[0], (0, 0, 0, 1, 0, 1))
    values = F.linear(padded, value.weight, value.bias)
    weights, table = module.get_parameter("window_pairs.4"), module.table_bias
    mixed = torch.zeros(8, 8, DIM, dtype=torch.float64)
    for y in range(64):
        query = divmod(y, 8)
        for z in range(64):
            key = divmod(z, 8)
            # Coordinates in the rolled map, where windows are plain squares.
            rolled = [(side - 2) % 8 for side in (*query, *key)]
            windows = [side // 4 for side in rolled]
            wrapped = [side < 2 for side in (*query, *key)]
            if windows[:2] != windows[2:] or wrapped[:2] != wrapped[2:]:
                continue  # another window, or neighbours by the roll alone
            (i, j, k, m) = (side % 4 for side in rolled)
            pair = weights[2 * windows[0] + windows[1], 4 * i + j, 4 * k + m]
            pair = pair + table[(k - i + 3) * 7 + m - j + 3]
            mixed[query] += pair.repeat_interleave(4) * values[key]
    expected = F.linear(mixed, proj.weight, proj.bias)[:7, :7]
    close(module(x, mixer)[0], expected)


def test_equal_weights_in_all_windows_are_shared_positions() -> None:
    shared = LocalMlp(window_size=3, num_heads=4, shared_positions=True)
    unshared = LocalMlp(window_size=3, num_heads=4)
    module = build(shared, unshared)
    module.get_parameter("window_pairs.3").data.copy_(module.pairs.expand(9, -1, -1, -1))
    x = noise(2, SIZE, SIZE, DIM)
    close(module(x, unshared), module(x, shared))


@pytest.mark.parametrize("block", [0, 1])
def test_local_mlp_without_pair_weights_is_window_attention_of_biases_alone(block: int) -> None:
    """Zhou et al. 2023, Eq. 4: r^b alone with identity, in the same shifted windows."""
    mlp = LocalMlp(window_size=3, num_heads=4, shared_positions=True)
    attention = WindowAttention(window_size=3, num_heads=4, terms="bias", norm="identity")
    place = Place(dim=DIM, size=SIZE, block=block)
    ours = build(mlp, place=place)
    ours.pairs.data.zero_()
    other = WindowAttentionMixer([attention], place=place).double()
    weights = other.attention
    weights.in_proj.load_state_dict(ours.value.state_dict())
    weights.proj.load_state_dict(ours.proj.state_dict())
    assert weights.table_bias is not None
    weights.table_bias.data.copy_(ours.table_bias)
    x = noise(2, 8, 10, DIM)
    close(ours(x, mlp), other(x, attention))


def test_as_many_heads_as_channels_share_nothing_across_channels() -> None:
    mixer = LocalMlp(window_size=3, num_heads=DIM, shared_positions=True)
    module = build(mixer)
    eye = torch.eye(DIM).double()
    module.value.weight.data.copy_(eye)
    module.proj.weight.data.copy_(eye)
    x = noise(1, 6, 6, DIM)
    before = module(x, mixer)
    module.pairs.data[..., 5] += 1
    changed = (module(x, mixer) - before).abs().amax((0, 1, 2)) > 0
    assert changed.nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize(
    "mixer",
    [
        DepthwiseConv(kernel_size=3, shared_positions=False),
        LocalMlp(window_size=3, num_heads=2),
    ],
)
def test_weights_of_positions_refuse_another_map(mixer: Mixer) -> None:
    module = build(mixer)
    with pytest.raises(ValueError, match=r"of 7 x 7 tokens, got a map of 7 x 6. Build"):
        module(noise(1, 7, 6, DIM), mixer)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 4)])
@pytest.mark.parametrize(
    "mixer", [m for m in SETTINGS if getattr(m, "shared_positions", True)], ids=name_of
)
def test_any_map_runs_where_positions_are_shared(mixer: Mixer, size: tuple[int, int]) -> None:
    """A map inside a larger one of zeros: kernels and filters see no difference.

    Windows and pooled filters do, so that only their shape is compared.
    """
    module = build(mixer)
    x = noise(2, *size, DIM)
    y = module(x, mixer)
    assert y.shape == x.shape
    assert y.isfinite().all()
    if mixer.kind in CONV_KINDS - {"dynamic_depthwise_conv"}:
        bordered = F.pad(x, (0, 0, 3, 3, 3, 3))
        inner = module.convolve(bordered, mixer)[:, 3 : 3 + size[0], 3 : 3 + size[1]]
        close(module.convolve(x, mixer), inner)


@pytest.mark.parametrize("kernel_size", [2, 4, 6])
@pytest.mark.parametrize("channels_per_filter", [1, 3])
def test_even_kernels_reach_one_further_up_and_left(
    kernel_size: int, channels_per_filter: int
) -> None:
    mixer = DepthwiseConv(kernel_size=kernel_size, channels_per_filter=channels_per_filter)
    module = build(mixer, DepthwiseConv(kernel_size=7, channels_per_filter=1))
    x = noise(2, 5, 6, DIM)
    try:
        depthwise_conv(x, x.new_zeros(DIM, kernel_size, kernel_size))
    except ValueError:
        pytest.skip("the neighbourhood operators here take odd kernels only")
    start = 3 - kernel_size // 2  # inside the kernel of 7, whose centre is tap 3
    taps = slice(start, start + kernel_size)
    square = module.weight.t().unflatten(1, (7, 7))[::channels_per_filter, taps, taps]
    kernel = square.repeat_interleave(channels_per_filter, 0).unsqueeze(1)
    before, after = kernel_size // 2, kernel_size // 2 - 1
    planes = F.pad(x.permute(0, 3, 1, 2), (before, after, before, after))
    expected = F.conv2d(planes, kernel, module.bias, groups=DIM)
    close(module.convolve(x, mixer), expected.permute(0, 2, 3, 1))


@each_setting
def test_in_eval_mode_one_image_needs_no_others(mixer: Mixer) -> None:
    module = build(mixer)
    x = noise(3, SIZE, SIZE, DIM)
    close(module(x[1:2], mixer), module(x, mixer)[1:2])


def test_a_pooled_batch_norm_refuses_to_train_on_one_image() -> None:
    mixer = DynamicDepthwiseConv(kernel_size=3)
    module = build(mixer).train()
    with pytest.raises(ValueError, match=r"more than one value a channel.*at least 2"):
        module(noise(1, SIZE, SIZE, DIM), mixer)
    module(noise(2, SIZE, SIZE, DIM), mixer)


@each_path
def test_memory_layout_changes_nothing(mixer: Mixer) -> None:
    module = build(mixer)
    x = noise(2, SIZE, SIZE, DIM)
    planes = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not planes.is_contiguous()
    close(module(planes, mixer), module(x, mixer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_path
def test_autocast_computes_the_same_to_its_precision(mixer: Mixer, dtype: torch.dtype) -> None:
    module = build(mixer).float().train()
    x = noise(2, SIZE, SIZE, DIM).float()
    expected = module(x, mixer)
    with torch.autocast("cpu", dtype=dtype):
        y = module(x, mixer)
    y.float().sum().backward()
    scale = expected.std().item()
    assert y.float().sub(expected).std().item() < 16 * torch.finfo(dtype).eps * scale
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


class OneSetting(nn.Module):
    """A module and its setting, called with a map alone: what compilers and exporters take."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.module = build(mixer).float()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x, self.mixer)


@each_path
def test_a_mixer_compiles_as_one_graph(mixer: Mixer) -> None:
    torch._dynamo.reset()
    network, x = OneSetting(mixer), noise(2, SIZE, SIZE, DIM).float().requires_grad_()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    expected, actual = network(x), compiled(x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    wanted, found = (torch.autograd.grad(y.square().sum(), x)[0] for y in (expected, actual))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@each_path
def test_a_mixer_is_exported_for_any_batch(mixer: Mixer) -> None:
    network = OneSetting(mixer)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        network, (noise(2, SIZE, SIZE, DIM).float(),), dynamic_shapes=({0: batch},)
    )
    x = noise(5, SIZE, SIZE, DIM).float()
    torch.testing.assert_close(exported.module()(x), network(x), rtol=1e-4, atol=1e-4)
