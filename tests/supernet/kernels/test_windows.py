"""Shifted windows: one additive tensor for bias and mask, explicit products or the fused kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from searchspace.mixers import WindowAttention
from supernet.kernels.attention.normalisation import normalise
from supernet.kernels.select import VARIABLE, prefers_sdpa
from supernet.mixers import window_attention
from supernet.mixers.sharing import Place
from supernet.mixers.window_attention import WindowAttentionMixer
from tests.window_definition import windows_by_definition

TERMS = ("qk", "qk+bias", "qk+qr+rk", "qk+qr+rk+bias")


@pytest.mark.parametrize("terms", [*TERMS, "qr", "rk", "qr+rk+bias", "bias"])
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("is_fused", [False, True, "large batches"])
def test_windows_compute_what_the_definition_says(
    monkeypatch: pytest.MonkeyPatch, terms: str, block: int, is_fused: bool | str
) -> None:
    """Outputs and gradients, of products that are written out and of PyTorch's fused kernel."""
    if is_fused == "large batches":
        monkeypatch.setattr(window_attention, "MOST_FUSED", 1)
    torch.manual_seed(0)
    mixer = WindowAttention(window_size=3, num_heads=2, terms=terms)
    module = WindowAttentionMixer([mixer], place=Place(dim=6, size=7, block=block)).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    state = {n.removeprefix("attention."): p for n, p in module.named_parameters()}
    monkeypatch.setattr(window_attention, "prefers_sdpa", lambda queries: is_fused)

    found = module(x, mixer)

    expected = windows_by_definition(x, state, mixer, is_shifted=block == 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.linspace(-1, 1, found.numel(), dtype=x.dtype).view(found.shape)
    grads = [torch.autograd.grad(y, [x, *module.parameters()], weight) for y in (found, expected)]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("block", [0, 1])
def test_the_fused_kernel_is_given_four_axes(
    monkeypatch: pytest.MonkeyPatch, terms: str, block: int
) -> None:
    """PyTorch's fused kernels on GPUs take no other number."""
    mixer = WindowAttention(window_size=3, num_heads=2, terms=terms)
    module = WindowAttentionMixer([mixer], place=Place(dim=6, size=7, block=block))
    attend, found = F.scaled_dot_product_attention, []

    def record(*tokens: Tensor, attn_mask: Tensor | None) -> Tensor:
        found.extend(x.dim() for x in (*tokens, attn_mask) if x is not None)
        return attend(*tokens, attn_mask=attn_mask)

    monkeypatch.setattr(window_attention, "prefers_sdpa", lambda queries: True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    module(torch.randn(2, 7, 6, 6), mixer)

    assert len(found) >= 3
    assert set(found) == {4}


@pytest.mark.parametrize("terms", [*TERMS, "bias", "qr", "rk"])
@pytest.mark.parametrize("norm", ["softmax", "filter_norm", "identity"])
def test_tokens_that_were_no_neighbours_before_the_shift_do_not_meet(terms: str, norm: str) -> None:
    torch.manual_seed(0)
    mixer = WindowAttention(window_size=4, num_heads=2, terms=terms, norm=norm)
    module = WindowAttentionMixer([mixer], place=Place(dim=6, size=8, block=1))
    x = torch.randn(1, 8, 8, 6)
    other = x.clone()
    other[:, :2] += 10.0

    changed = (module(x, mixer) != module(other, mixer)).any(-1)

    # Statistics of filter normalisation see all pairs of a window.
    if norm != "filter_norm":
        assert not changed[:, 2:].any()
    assert changed[:, :2].all()


def test_masked_weights_are_zero_and_no_denormal_number() -> None:
    masked = torch.tensor([False, True, False])

    weights = normalise(torch.tensor([0.3, 50.0, -0.2]), "softmax", masked)

    assert weights[1] == 0
    torch.testing.assert_close(weights[[0, 2]], torch.tensor([0.3, -0.2]).softmax(0))


@pytest.mark.parametrize("taps", [1, 2, 5])
def test_filter_normalisation_has_exact_first_and_second_derivatives(taps: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, taps, dtype=torch.double, requires_grad=True)

    def weights(x: torch.Tensor) -> torch.Tensor:
        return normalise(x, "filter_norm")

    assert torch.autograd.gradcheck(weights, (logits,))
    assert torch.autograd.gradgradcheck(weights, (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True])
def test_filter_normalisation_in_half_precision_is_that_of_float32_rounded(
    dtype: torch.dtype, compiled: bool
) -> None:
    """Where logits do not differ, 1e-10 is what it divides by: zero, in float16."""
    torch.manual_seed(0)
    rounding = 2 * torch.finfo(dtype).eps
    function = normalise
    if compiled:
        torch.compiler.reset()
        function = torch.compile(normalise, backend="aot_eager", fullgraph=True)
    assert not function(torch.ones(2, 9, dtype=dtype), "filter_norm").any()
    alone, some = torch.randn(3, 1), torch.randn(4, 9)
    for logits in (alone, some, some / 1000):
        low = logits.to(dtype).requires_grad_()
        high = low.detach().float().requires_grad_()
        weights, wanted = function(low, "filter_norm"), normalise(high, "filter_norm")
        factors = torch.randn(logits.shape).to(dtype)
        (grad,) = torch.autograd.grad(weights, low, factors)
        (grad_wanted,) = torch.autograd.grad(wanted, high, factors.float())

        assert weights.dtype == grad.dtype == dtype
        torch.testing.assert_close(weights.float(), wanted, rtol=rounding, atol=rounding)
        scale = max(float(grad_wanted.abs().max()), 1.0)
        torch.testing.assert_close(grad.float(), grad_wanted, rtol=0, atol=4 * rounding * scale)


def test_filter_normalisation_keeps_one_tensor_of_the_size_of_its_logits() -> None:
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    logits = torch.randn(4, 9, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        normalise(logits, "filter_norm")

    assert sorted(kept.values()) == [4, 36]


def test_a_shift_adds_no_pass_over_the_logits() -> None:
    mixer = WindowAttention(window_size=7, num_heads=2)
    x = torch.randn(2, 14, 14, 8, requires_grad=True)
    counts = []
    for block in (0, 1):
        module = WindowAttentionMixer([mixer], place=Place(dim=8, size=14, block=block))
        module(x, mixer)  # fills the caches of offsets and masks
        with torch.profiler.profile(record_shapes=True) as profile:
            module(x, mixer).sum().backward()
        counts.append(sum(_touches_logits(event.input_shapes) for event in profile.events()))

    assert 0 < counts[1] <= counts[0]


def _touches_logits(shapes: list[list[int]]) -> bool:
    return [2, 4, 2, 49, 49] in shapes


def test_the_fused_kernel_serves_accelerators_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not prefers_sdpa(torch.zeros(1))
    assert prefers_sdpa(torch.zeros(1, device="meta"))

    monkeypatch.setenv(VARIABLE, "naive")
    assert not prefers_sdpa(torch.zeros(1, device="meta"))
