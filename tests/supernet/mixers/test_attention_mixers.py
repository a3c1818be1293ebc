"""Laws of the attention-like mixers: reductions to known layers, exact extraction, odd maps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.mixer_cost import count_mixer
from searchspace.mixers import (
    CONVS,
    DecoupledDynamicFilter,
    Elsa,
    GlobalAttention,
    Mixer,
    NeighborhoodAttention,
    OutlookAttention,
    WindowAttention,
)
from supernet.mixers import MIXERS
from supernet.mixers.elsa import signed_power
from supernet.mixers.sharing import Place

DIM = 12

WINDOWS = [
    WindowAttention(window_size=window, num_heads=heads, terms=terms, conv=conv)
    for window, heads, terms, conv in product(
        (2, 3), (2, 4), ("qk+bias", "static", "qk+qr+rk+static+bias"), CONVS
    )
]
NEIGHBORS = [
    NeighborhoodAttention(kernel_size=size, num_heads=heads, terms=terms, norm=norm, conv=conv)
    for size, heads, terms, norm, conv in product(
        (2, 3, 5), (2, 4), ("qk+bias", "static+bias"), ("softmax", "identity"), CONVS
    )
]
FILTERS = [
    DecoupledDynamicFilter(
        kernel_size=size, num_heads=heads, combine=combine, se_ratio=ratio, dilation=dilation
    )
    for size, heads, combine, ratio, dilation in product(
        (2, 3, 5), (1, 3), ("mul", "add"), (0.2, 0.5), (1, 2)
    )
]
OUTLOOKS = [
    OutlookAttention(num_heads=heads, kernel_size=size, stride=stride)
    for heads, (size, stride) in product((2, 3), ((1, 1), (3, 1), (3, 2), (5, 2), (5, 5)))
]
ELSAS = random.Random(0).sample(
    [
        Elsa(
            kernel_size=size,
            num_heads=heads,
            group_width=width,
            lam=lam,
            gamma=gamma,
            dilation=dilation,
            logit_groups=groups,
            qk_dim=qk_dim,
            v_dim=v_dim,
        )
        for size, heads, width, (lam, gamma), (dilation, v_dim), (groups, qk_dim) in product(
            (2, 3, 5),
            (2, 4),
            (1, 2, 4),
            ((0, 1), (0.5, 0), (2, -1)),
            ((1, 0), (2, 20)),
            ((1, 0), (2, 8), (4, 16)),
        )
        if heads * size**2 % groups == 0
    ],
    60,
)
GLOBALS = [GlobalAttention(num_heads=heads, sr_ratio=r) for heads, r in product((2, 3), (1, 2, 3))]
FAMILIES: dict[str, Sequence[Mixer]] = {
    mixers[0].kind: mixers for mixers in (WINDOWS, NEIGHBORS, FILTERS, OUTLOOKS, ELSAS, GLOBALS)
}

# One of each kind, and of each way to compute.
SOME: tuple[Mixer, ...] = (
    WindowAttention(window_size=3, num_heads=2),
    *(WindowAttention(window_size=3, num_heads=2, terms="qk+static", conv=conv) for conv in CONVS),
    NeighborhoodAttention(kernel_size=3, num_heads=2, terms="qk+qr+rk+static+bias", conv="post"),
    NeighborhoodAttention(kernel_size=3, num_heads=2, norm="filter_norm", conv="pre"),
    DecoupledDynamicFilter(kernel_size=3, num_heads=2, dilation=2),
    DecoupledDynamicFilter(kernel_size=3, num_heads=2, combine="add"),
    OutlookAttention(num_heads=2),
    OutlookAttention(num_heads=2, stride=1),
    Elsa(kernel_size=3, num_heads=2, lam=1),
    Elsa(kernel_size=4, num_heads=2, lam=0.5, dilation=2, logit_groups=2),
    GlobalAttention(num_heads=2),
)
NAMES = [f"{mixer.short}-{index}" for index, mixer in enumerate(SOME)]
# Tracing takes seconds: one of each kind, with the settings whose code no other kind shares.
TRACED: tuple[Mixer, ...] = (
    WindowAttention(window_size=3, num_heads=2, terms="qk+static+bias", conv="post"),
    NeighborhoodAttention(kernel_size=3, num_heads=2, terms="qk+rk+static", conv="pre"),
    DecoupledDynamicFilter(kernel_size=2, num_heads=2, combine="add"),
    OutlookAttention(num_heads=2),
    Elsa(kernel_size=3, num_heads=2, lam=0.5, logit_groups=2),
    GlobalAttention(num_heads=2, sr_ratio=2),
)


def randomise(module: nn.Module) -> nn.Module:
    """Give every parameter and statistic values that show a wrong slice."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    for name, buffer in module.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.5, 1.5)
    return module


def build(*mixers: Mixer, block: int = 1, qkv_bias: bool = True, seed: int = 0) -> nn.Module:
    """Build a mixer's module in float64, with random weights, in eval mode."""
    torch.manual_seed(seed)
    place = Place(dim=DIM, size=7, block=block, qkv_bias=qkv_bias)
    return randomise(MIXERS[mixers[0].kind](mixers, place=place)).double().eval()


def maps(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, DIM, generator=generator, dtype=torch.float64)


def neighbors(x: Tensor, size: int, *, dilation: int = 1) -> Tensor:
    """Gather (B, H, W, C) -> (B, H, W, C, K*K): the definition of the offsets, by `F.unfold`."""
    before = size // 2 * dilation
    after = (size - 1) * dilation - before
    image = F.pad(x.permute(0, 3, 1, 2), (before, after, before, after))
    columns = F.unfold(image, size, dilation=dilation).unflatten(1, (x.shape[-1], -1))
    return columns.permute(0, 3, 1, 2).unflatten(1, x.shape[1:3])


def linear(module: nn.Module, name: str, x: Tensor) -> Tensor:
    state = module.state_dict()
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_every_setting_extracts_exactly(kind: str, qkv_bias: bool) -> None:
    mixers = FAMILIES[kind]
    shared = build(*mixers, qkv_bias=qkv_bias)
    x = maps(1, 5, 4)
    for mixer in mixers:
        alone = build(mixer, qkv_bias=qkv_bias, seed=2)
        alone.load_state_dict(shared.select(mixer))  # type: ignore[operator]
        with torch.no_grad():
            torch.testing.assert_close(alone(x, mixer), shared(x, mixer), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_closed_form_parameters_equal_the_module(kind: str, qkv_bias: bool) -> None:
    for mixer in FAMILIES[kind]:
        with torch.device("meta"):
            place = Place(dim=DIM, size=7, qkv_bias=qkv_bias)
            module = MIXERS[kind]([mixer], place=place)
        built = sum(parameter.numel() for parameter in module.parameters())
        norm_before = 2 * DIM
        counted = count_mixer(mixer, dim=DIM, size=7, qkv_bias=qkv_bias).params
        assert built + norm_before == counted, mixer


def test_bias_alone_with_a_head_a_channel_is_a_depthwise_convolution() -> None:
    mixer = NeighborhoodAttention(kernel_size=5, num_heads=DIM, terms="bias", norm="identity")
    module = build(mixer)
    conv = nn.Conv2d(DIM, DIM, 5, padding=2, groups=DIM, bias=False).double()
    table = module.get_parameter("attention.table_bias")  # (taps, heads)
    conv.weight.data = table.detach().t().reshape(DIM, 1, 5, 5)
    x = maps(2, 7, 6)

    values = linear(module, "attention.in_proj", x)
    filtered = conv(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    expected = linear(module, "attention.proj", filtered)
    torch.testing.assert_close(module(x, mixer), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [2, 4, 5])
@pytest.mark.parametrize("terms", ["qk+bias", "qk+qr+rk+static+bias"])
def test_neighborhoods_of_any_size_are_as_defined(size: int, terms: str) -> None:
    """Odd and even kernels, on a map that the largest do not fit; with and without static terms."""
    heads = 3
    mixer = NeighborhoodAttention(kernel_size=size, num_heads=heads, terms=terms)
    module = build(mixer)
    state = {name.removeprefix("attention."): v for name, v in module.state_dict().items()}
    x = maps(2, 4, 3)
    q, k, v = linear(module, "attention.in_proj", x).chunk(3, -1)
    products = q[..., None] * neighbors(k, size)  # (B, H, W, C, taps)
    if "qr" in terms:
        products = products + q[..., None] * state["table_qr"].t()
        products = products + neighbors(k, size) * state["table_rk"].t()
    logits = products.unflatten(3, (heads, -1)).sum(4) * (DIM // heads) ** -0.5
    if "static" in terms:
        logits = logits + torch.einsum("bhwc,tnc->bhwnt", x, state["table_static"])
    weights = (logits + state["table_bias"].t()).softmax(-1).repeat_interleave(DIM // heads, 3)

    expected = linear(module, "attention.proj", (weights * neighbors(v, size)).sum(-1))
    torch.testing.assert_close(module(x, mixer), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("terms", ["qr", "static"])
def test_one_linear_term_is_the_linear_inhomogeneous_filter(terms: str) -> None:
    """The filter at i is linear in what stands at i (Zhou et al. Eq. 4, Han et al. Eq. 20)."""
    heads, size = 3, 3
    mixer = NeighborhoodAttention(kernel_size=size, num_heads=heads, terms=terms, norm="identity")
    module = build(mixer)
    x = maps(2, 5, 6)
    tokens = linear(module, "attention.in_proj", x)
    values = tokens[..., -DIM:]
    if terms == "qr":
        q = tokens[..., :DIM].unflatten(-1, (heads, -1)) * (DIM // heads) ** -0.5
        table = module.get_parameter("attention.table_qr").unflatten(-1, (heads, -1))
        filters = (q[..., None, :] * table.transpose(0, 1)).sum(-1)
    else:
        theta = module.get_parameter("attention.table_static")  # (taps, heads, C)
        filters = (x[..., None, None, :] * theta.transpose(0, 1)).sum(-1)

    filtered = (filters.repeat_interleave(DIM // heads, 3) * neighbors(values, size)).sum(-1)

    expected = linear(module, "attention.proj", filtered)
    torch.testing.assert_close(module(x, mixer), expected, rtol=0, atol=1e-12)


def test_a_window_as_large_as_the_map_is_global_attention() -> None:
    window = WindowAttention(window_size=6, num_heads=3, terms="qk")
    everywhere = GlobalAttention(num_heads=3)
    module, reference = build(window), build(everywhere)
    state = {name.removeprefix("attention."): v for name, v in module.state_dict().items()}
    reference.load_state_dict(state)
    x = maps(2, 6, 6)

    torch.testing.assert_close(module(x, window), reference(x, everywhere), rtol=0, atol=1e-12)


def test_static_terms_in_windows_are_what_each_key_reads_at_its_offset() -> None:
    mixer = WindowAttention(window_size=3, num_heads=2, terms="static", norm="identity")
    module = build(mixer, block=0)
    theta = module.get_parameter("attention.table_static").unflatten(0, (5, 5))
    x = maps(1, 3, 3)
    values = linear(module, "attention.in_proj", x)[0].unflatten(-1, (2, -1))
    mixed = torch.zeros_like(values)
    for iy, ix, jy, jx in product(range(3), repeat=4):
        weight = theta[jy - iy + 2, jx - ix + 2] @ x[0, iy, ix]  # one for each head
        mixed[iy, ix] += weight[:, None] * values[jy, jx]

    expected = linear(module, "attention.proj", mixed.flatten(-2))
    torch.testing.assert_close(module(x, mixer)[0], expected, rtol=0, atol=1e-12)


def circulant(size: int, kernel: Tensor) -> Tensor:
    """Write the circular convolution of a size x size grid as a matrix, as Eq. 25 prints it."""
    matrix = torch.zeros(size**2, size**2, dtype=kernel.dtype)
    for row, column, r, c in product(range(size), range(size), range(3), range(3)):
        source = (row + r - 1) % size * size + (column + c - 1) % size
        matrix[row * size + column, source] += kernel[3 * r + c]
    return matrix


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_post_convolution_multiplies_the_logits_with_a_circulant_matrix(size: int) -> None:
    mixer = WindowAttention(window_size=size, num_heads=1, terms="qk+bias", conv="post")
    module = build(mixer, block=0)
    state = module.state_dict()
    x = maps(1, size, size)
    q, k, v = linear(module, "attention.in_proj", x.flatten(0, 2)).chunk(3, -1)
    matrix = circulant(size, state["attention.post_kernel"][:, 0])
    grid = torch.tensor(list(product(range(size), repeat=2)))
    offset = grid[None] - grid[:, None] + size - 1  # key minus query
    table = state["attention.table_bias"].view(2 * size - 1, 2 * size - 1)
    bias = table[offset[..., 0], offset[..., 1]]

    logits = (matrix @ (k @ q.t() * DIM**-0.5)).t() + bias  # Eq. 25: rows are keys

    expected = linear(module, "attention.proj", logits.softmax(-1) @ v)
    actual = module(x, mixer).flatten(0, 2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("plain", "post"),
    [
        (
            cls(num_heads=3, terms="qk+qr+bias", **size),
            cls(num_heads=3, terms="qk+qr+bias", conv="post", **size),
        )
        for cls, size in (
            (WindowAttention, {"window_size": 4}),
            (NeighborhoodAttention, {"kernel_size": 5}),
        )
    ],
)
def test_post_convolution_starts_as_plain_attention(plain: Mixer, post: Mixer) -> None:
    place = Place(dim=DIM, size=7, block=1)
    module = MIXERS[post.kind]([plain, post], place=place).double()
    x = maps(2, 7, 6)

    torch.testing.assert_close(module(x, post), module(x, plain), rtol=0, atol=1e-12)


@pytest.mark.parametrize("conv", ["pre", "pre_depthwise", "pre_full"])
def test_pre_convolution_changes_queries_and_keys_only(conv: str) -> None:
    mixer = NeighborhoodAttention(kernel_size=3, num_heads=1, terms="qk", conv=conv)
    module = build(mixer)
    state = module.state_dict()
    prefix = f"attention.pre_convs.{conv}"
    weight = state[f"{prefix}.weight"]
    dense = (
        weight
        if conv == "pre_full"
        else torch.diag_embed(weight[:, 0].expand(DIM, 3, 3).permute(1, 2, 0)).permute(2, 3, 0, 1)
    )
    x = maps(2, 5, 6)
    convolved = F.conv2d(x.permute(0, 3, 1, 2), dense, padding=1).permute(0, 2, 3, 1)
    normed = (convolved - state[f"{prefix}.norm.running_mean"]) / (
        state[f"{prefix}.norm.running_var"] + 1e-5
    ).sqrt()
    seen = (normed * state[f"{prefix}.norm.weight"] + state[f"{prefix}.norm.bias"]).relu()
    q, k = linear(module, "attention.query_key", seen).chunk(2, -1)
    v = linear(module, "attention.in_proj", x)

    logits = (q[..., None] * neighbors(k, 3)).sum(3) * DIM**-0.5
    mixed = (logits.softmax(-1)[..., None, :] * neighbors(v, 3)).sum(-1)

    expected = linear(module, "attention.proj", mixed)
    torch.testing.assert_close(module(x, mixer), expected, rtol=0, atol=1e-12)


def test_windows_see_a_map_that_was_convolved_before_it_was_cut() -> None:
    """A pixel outside a window changes the window's queries and keys, by one pixel's reach."""
    x = maps(1, 6, 6)
    changed = x.clone()
    changed[:, :, 3] += 1  # the first column of the windows to the right
    for conv, is_seen in (("none", False), ("pre", True)):
        mixer = WindowAttention(window_size=3, num_heads=2, conv=conv)
        module = build(mixer, block=0)
        difference = (module(changed, mixer) - module(x, mixer))[:, :, :3].abs().max()
        assert (difference > 1e-6) == is_seen


@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 2)])
@pytest.mark.parametrize(("lam", "gamma"), [(0, 0), (0, 1), (1.5, -2)])
def test_elsa_is_hadamard_attention_with_a_ghost_head(
    size: int, dilation: int, lam: float, gamma: float
) -> None:
    """Written with unfold: any area, and plain Hadamard attention where lam = gamma = 0."""
    heads, width = 3, 4
    mixer = Elsa(
        kernel_size=size,
        num_heads=heads,
        group_width=width,
        lam=lam,
        gamma=gamma,
        dilation=dilation,
    )
    module = build(mixer)
    state = module.state_dict()
    x = maps(2, 5, 6)
    q, k, v = linear(module, "in_proj", x).split((8, 8, DIM), -1)
    patches = neighbors(q * k, size, dilation=dilation)
    patches = patches.unflatten(3, (-1, 1, width))  # (..., groups, 1, width, taps)
    weight = state["conv_weight"].permute(1, 2, 0).unflatten(0, (-1, width))
    hidden = (patches * weight).sum((-1, -2)).flatten(-2) + state["conv_bias"]
    logits = torch.einsum("bhwc,tnc->bhwnt", F.gelu(hidden), state["logit_weight"])
    filters = (logits + state["logit_bias"].t()).softmax(-1).repeat_interleave(DIM // heads, 3)
    if lam:
        filters = filters * (state["mul"].sign() * state["mul"].abs() ** lam).t()
    if gamma:
        filters = filters + gamma * state["add"].t()

    expected = linear(module, "proj", (filters * neighbors(v, size, dilation=dilation)).sum(-1))

    torch.testing.assert_close(module(x, mixer), expected, rtol=0, atol=1e-12)


def test_narrower_groups_use_the_weights_of_the_same_channels() -> None:
    """The filters as whole matrices: narrow groups keep the wide groups' blocks on the diagonal."""
    options = [Elsa(kernel_size=3, num_heads=2, group_width=w, qk_dim=8) for w in (4, 2, 1)]
    module = build(*options)

    def whole(mixer: Elsa) -> Tensor:
        weight = module.select(mixer)["conv_weight"]  # type: ignore[operator]
        matrix = torch.zeros(9, 8, 8, dtype=weight.dtype)
        for channel, slot in product(range(8), range(mixer.group_width)):
            start = channel // mixer.group_width * mixer.group_width
            matrix[:, channel, start + slot] = weight[:, channel, slot]
        return matrix

    widest = whole(options[0])
    for mixer in options:
        group = torch.arange(8) // mixer.group_width
        expected = widest * (group[:, None] == group)
        torch.testing.assert_close(whole(mixer), expected, rtol=0, atol=0)


def test_logits_in_groups_use_the_weights_of_the_same_channels() -> None:
    ungrouped = Elsa(kernel_size=3, num_heads=2, qk_dim=8)
    grouped = Elsa(kernel_size=3, num_heads=2, qk_dim=8, logit_groups=2)
    module = build(ungrouped, grouped)
    whole, parts = (module.select(mixer)["logit_weight"] for mixer in (ungrouped, grouped))  # type: ignore[operator]

    # Two groups of two heads: the first head reads the first half of the channels.
    torch.testing.assert_close(parts[:, 0], whole[:, 0, :4], rtol=0, atol=0)
    torch.testing.assert_close(parts[:, 1], whole[:, 1, 4:], rtol=0, atol=0)


def test_logits_in_groups_share_weights_of_several_group_widths() -> None:
    # Whole groups of 4 make 4 channels of queries and keys, whole groups of 8 make 8.
    narrow, wide = (
        Elsa(kernel_size=3, num_heads=2, group_width=width, logit_groups=2) for width in (4, 8)
    )
    module = build(narrow, wide)

    for mixer in (narrow, wide):
        alone = build(mixer)
        alone.load_state_dict(module.select(mixer))  # type: ignore[operator]
        x = maps(2, 5, 4)
        torch.testing.assert_close(module(x, mixer), alone(x, mixer))


def test_group_widths_that_do_not_divide_the_largest_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must divide the largest.*got \[2, 3\]"):
        build(*[Elsa(kernel_size=3, num_heads=2, group_width=width) for width in (2, 3)])


@pytest.mark.parametrize("lam", [0.0, 0.01, 0.5, 1.0, 1.5, 2.0, 3.0, 7.7, 100.0])
@pytest.mark.parametrize("gamma", [0.0, -2.5, 1.0])
def test_no_lambda_and_gamma_gives_nan(lam: float, gamma: float) -> None:
    mixer = Elsa(kernel_size=3, num_heads=2, lam=lam, gamma=gamma)
    module = build(mixer).float()
    if lam:
        mul = module.get_parameter("mul")
        mul.data = 3 * torch.randn_like(mul)
        mul.data[0] = 0
    y = module(maps(2, 5, 4).float(), mixer)
    grads = torch.autograd.grad(y.sum(), list(module.parameters()))

    assert y.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in grads)


def test_elsa_keeps_its_values_once_for_the_backward_pass() -> None:
    mixer = Elsa(kernel_size=3, num_heads=2)
    module, x = build(mixer), maps(2, 5, 4)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        return kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x, mixer)

    values = linear(module, "in_proj", x)[..., -DIM:]
    assert sum(torch.equal(values, tensor) for tensor in kept.values()) == 1


def test_powers_are_signed_between_the_integers_and_published_at_them() -> None:
    base = torch.tensor([-2.0, -0.5, 0.0, 0.25, 3.0])

    torch.testing.assert_close(signed_power(base, 2), torch.tensor([4.0, 0.25, 0.0, 0.0625, 9.0]))
    torch.testing.assert_close(signed_power(base, 3), base * base * base)
    cubed = signed_power(signed_power(base, 0.5), 3)
    torch.testing.assert_close(cubed, signed_power(base, 1.5), rtol=1e-4, atol=1e-4)
    assert (signed_power(base, 0.5).sign() == base.sign()).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_decoupled_filters_are_two_standardised_filters(
    size: int, dilation: int, combine: str
) -> None:
    heads, taps = 3, size**2
    mixer = DecoupledDynamicFilter(
        kernel_size=size, num_heads=heads, combine=combine, se_ratio=0.5, dilation=dilation
    )
    module = build(mixer)
    state = module.state_dict()
    x = maps(2, 5, 6)
    v = linear(module, "value", x)

    def standard(f: Tensor) -> Tensor:
        centred = f - f.mean(-1, keepdim=True)
        return centred / ((centred**2).sum(-1, keepdim=True) / max(taps - 1, 1)).sqrt().clamp(1e-10)

    spatial = torch.einsum("bhwc,tnc->bhwnt", v, state["spatial_weight"])
    spatial = standard(spatial + state["spatial_bias"].t()) * 2**0.5 / size
    hidden = linear(module, "reduce", v.mean((1, 2))).relu()
    channel = torch.einsum("bm,tcm->bct", hidden, state["channel_weight"])
    channel = standard(channel + state["channel_bias"].t()) * state["deviation"].t()
    spatial = spatial.repeat_interleave(DIM // heads, 3)
    channel = channel[:, None, None]
    filters = spatial * channel if combine == "mul" else spatial + channel

    expected = linear(module, "proj", (filters * neighbors(v, size, dilation=dilation)).sum(-1))
    torch.testing.assert_close(module(x, mixer), expected, rtol=0, atol=1e-8)


def test_outlook_attention_over_one_tap_is_two_projections() -> None:
    mixer = OutlookAttention(num_heads=2, kernel_size=1, stride=1)
    module = build(mixer)
    x = maps(2, 5, 4)

    expected = linear(module, "proj", linear(module, "value", x))
    torch.testing.assert_close(module(x, mixer), expected, rtol=0, atol=1e-12)


def test_a_reduced_map_leaves_out_what_the_ratio_does_not_fill() -> None:
    mixer = GlobalAttention(num_heads=2, sr_ratio=2)
    module = build(mixer)
    x = maps(1, 5, 4)
    changed = x.clone()
    changed[:, 4] += 1

    before, after = module(x, mixer), module(changed, mixer)

    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=0, atol=0)
    assert (after[:, 4] != before[:, 4]).any()


def test_a_map_that_reduction_leaves_empty_is_refused() -> None:
    mixer = GlobalAttention(num_heads=2, sr_ratio=4)
    with pytest.raises(ValueError, match=r"sr_ratio=4 and a map of 3 x 5"):
        build(mixer)(maps(1, 3, 5), mixer)


@pytest.mark.parametrize("mixer", SOME, ids=NAMES)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (5, 4)])
def test_an_image_is_mixed_alone_on_any_map(mixer: Mixer, size: tuple[int, int]) -> None:
    """Also 1 x 1 maps and areas larger than the map; a batch of one gives what a larger gives."""
    module, x = build(mixer), maps(2, *size)

    both, alone = module(x, mixer), module(x[:1], mixer)

    assert both.shape == x.shape
    assert both.isfinite().all()
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixer", SOME, ids=NAMES)
def test_the_layout_in_memory_does_not_matter(mixer: Mixer) -> None:
    module, x = build(mixer), maps(2, 5, 4)
    channels_first = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)

    torch.testing.assert_close(module(channels_first, mixer), module(x, mixer), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixer", SOME, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_same_up_to_rounding(mixer: Mixer, dtype: torch.dtype) -> None:
    module, x = build(mixer).float(), maps(2, 5, 4).float()
    with torch.no_grad():
        expected = module(x, mixer)

    with torch.autocast("cpu", dtype):
        y = module(x, mixer)
    grads = torch.autograd.grad(y.float().sum(), list(module.parameters()))

    error = (y.float() - expected).abs().max() / expected.std()
    assert error < (0.2 if dtype == torch.bfloat16 else 0.03)
    assert all(gradient.isfinite().all() for gradient in grads)


class Alone(nn.Module):
    """A mixer's module with its setting, as tools expect a module: one tensor in."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.module, self.mixer = build(mixer), mixer

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map."""
        found = self.module(x, self.mixer)
        assert isinstance(found, Tensor)
        return found


# The cached functions of window attention depend on sizes only; tracing them again is right.
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("mixer", TRACED, ids=lambda mixer: mixer.kind)
def test_compiled_mixers_compute_the_same(mixer: Mixer) -> None:
    module, x = Alone(mixer), maps(2, 5, 4)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)

    y, expected = compiled(x), module(x)

    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    parameters = list(module.parameters())
    for actual, wanted in zip(
        torch.autograd.grad(y.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mixer", TRACED, ids=lambda mixer: mixer.kind)
def test_exported_mixers_compute_the_same(mixer: Mixer) -> None:
    module, x = Alone(mixer), maps(2, 5, 4)

    exported = torch.export.export(module, (x,)).module()

    torch.testing.assert_close(exported(x), module(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("exponent", [0.01, 0.5, 1.5])
@pytest.mark.parametrize("size", [1e-12, 1.5e-12, 3e-12, 1e-6, 0.3, 7.0])
def test_powers_of_the_smallest_bases_are_exact(exponent: float, size: float) -> None:
    base = torch.tensor([size, -size], dtype=torch.float64)
    expected = [size**exponent, -(size**exponent)]
    torch.testing.assert_close(
        signed_power(base, exponent), torch.tensor(expected, dtype=torch.float64)
    )


def test_powers_stay_within_half_of_the_range_of_their_numbers() -> None:
    base = torch.tensor([1e30, -1e30, 1e5, -1e5])
    # |x|^p <= sqrt(3.4e38) = 1.8e19, and what is below that is as it is.
    assert signed_power(base, 2).tolist() == pytest.approx([1.8446743e19] * 2 + [1e10] * 2)
    assert signed_power(base, 2.5).tolist() == pytest.approx(
        [1.8446743e19, -1.8446743e19, 1e5**2.5, -(1e5**2.5)], rel=1e-4
    )
    assert torch.equal(signed_power(base, 1), base)
