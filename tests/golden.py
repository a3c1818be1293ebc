"""Outputs of the published code on random input and weights, and how tests compare with them.

The fixtures lie outside the project; without them the tests that ask for one skip. Keys of a
fixture: ``x``, ``y`` (eval mode), ``gy`` and ``gx`` (a cotangent and the input's gradient), ``p::``
parameters, ``b::`` buffers, ``g::`` gradients of parameters, ``y_train`` and ``b_after_train::``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parents[1].parent / "shared" / "golden"

State = dict[str, Tensor]
Convert = Callable[[State], State]  # writes published names and layouts as ours
Call = Callable[[Tensor], Tensor]


def read(name: str) -> State:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.skip("the published outputs (../shared/golden) are not on this machine")
    with np.load(path) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files if key != "meta"}


def state_of(fixture: State, *prefixes: str) -> State:
    return {
        key.split("::")[1]: value.double()
        for key, value in fixture.items()
        if key.split("::")[0] in prefixes and value.is_floating_point()
    }


def take(state: State, published: str, ours: str) -> State:
    """Rename one module's tensors; 1x1 convolutions become matrices."""
    return {
        f"{ours}.{name.removeprefix(published + '.')}": value.flatten(1)
        if value.dim() == 4
        else value
        for name, value in state.items()
        if name.startswith(published + ".") and "." not in name.removeprefix(published + ".")
    }


def inside(state: State, prefix: str) -> State:
    """Keep what lies in one module, under the names that it has there."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def load(module: nn.Module, state: State) -> None:
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)


def check(call: Call, fixture: State, size: tuple[int, ...]) -> None:
    """Compare output and input gradient; ``size`` is the input's shape behind the batch."""
    x = fixture["x"].double().view(-1, *size).requires_grad_()
    y = call(x)
    expected = fixture["y"].double()
    torch.testing.assert_close(y.reshape(expected.shape), expected, rtol=0, atol=1e-10)
    if "gx" in fixture:
        (gx,) = torch.autograd.grad(y, x, fixture["gy"].double().reshape(y.shape))
        expected_gx = fixture["gx"].double().reshape(gx.shape)
        torch.testing.assert_close(gx, expected_gx, rtol=1e-5, atol=1e-5)


def check_parameters(
    module: nn.Module, call: Call, fixture: State, size: tuple[int, ...], convert: Convert
) -> None:
    """Compare the gradients of all parameters, where the fixture has them.

    A parameter of ours that nothing published corresponds to is frozen by the caller.
    """
    gradients = state_of(fixture, "g")
    if not gradients:
        return
    expected = convert(gradients)
    x = fixture["x"].double().view(-1, *size)
    y = call(x)
    module.zero_grad()
    y.backward(fixture["gy"].double().reshape(y.shape))
    found = {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value is not None, name
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def check_train_mode(
    module: nn.Module, call: Call, fixture: State, size: tuple[int, ...], convert: Convert
) -> None:
    """Compare the output with batch statistics, and the running statistics after it."""
    module.train()
    y = call(fixture["x"].double().view(-1, *size))
    expected = fixture["y_train"].double()
    torch.testing.assert_close(y.reshape(expected.shape), expected, rtol=0, atol=1e-10)
    after = state_of(fixture, "b_after_train")
    if not after:
        return
    wanted = convert(state_of(fixture, "p", "b") | after)
    running = {n: b for n, b in module.named_buffers() if "running" in n}
    assert running
    for name, value in running.items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-10)


def network_state(state: State, convert: Callable[[int], Convert]) -> State:
    """Write a published network's parameters under our names."""
    found = take(state, "norm", "norm") | take(state, "head", "head")
    found |= take(state, "patch_embed.norm", "patch_embed.norm")
    found |= {k: v for k, v in state.items() if k.startswith("patch_embed.proj")}
    for name in state:
        if "downsample" in name:
            _, index, _, rest = name.split(".", 3)
            found[f"merges.{index}.{rest}"] = state[name]
    blocks = {tuple(name.split(".")[1:4:2]) for name in state if ".blocks." in name}
    for stage, block in blocks:
        converted = convert(int(stage))(inside(state, f"layers.{stage}.blocks.{block}."))
        found |= {f"stages.{stage}.{block}.{key}": value for key, value in converted.items()}
    return found
