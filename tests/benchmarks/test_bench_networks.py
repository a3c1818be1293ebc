"""The benchmark of whole networks: its steps, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.bench_networks import WANTED, Setting, Timed, buildable, main


def setting(dtype: torch.dtype, *, channels_last: bool = False) -> Setting:
    return Setting(
        device=torch.device("cpu"),
        dtype=dtype,
        images=1,
        img_size=32,
        channels_last=channels_last,
        compiled=False,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_step_leaves_fresh_gradients_and_an_inference_step_none(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    timed = Timed("elsa_swin_t", setting(dtype))
    logits: list[torch.Tensor] = []
    timed.network.register_forward_hook(lambda network, images, y: logits.append(y))

    timed.inference()
    assert all(weight.grad is None for weight in timed.network.parameters())
    timed.training()
    first = {name: weight.grad for name, weight in timed.network.named_parameters()}
    timed.training()

    # Weights and their gradients stay in float32; what the network returns is in the dtype.
    assert {y.dtype for y in logits} == {dtype}
    assert [y.requires_grad for y in logits] == [False, True, True]
    for name, weight in timed.network.named_parameters():
        assert weight.grad is not None
        assert first[name] is not None
        assert weight.grad.dtype == torch.float32
        assert weight.grad is not first[name]
        torch.testing.assert_close(weight.grad, first[name])


def test_channels_last_is_the_layout_of_images_and_of_the_stem() -> None:
    timed = Timed("swin_t", setting(torch.float32, channels_last=True))

    stem = next(w for w in timed.network.parameters() if w.dim() == 4 and w.shape[-1] > 1)
    for tensor in (timed.images, stem):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


def test_every_network_of_the_table_can_be_built() -> None:
    assert tuple(buildable()) == WANTED


@pytest.mark.slow  # peaks are those of processes of their own
def test_rates_are_set_beside_those_of_the_first_network(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "networks.json"

    main(["dwconv_t", "--img-size", "32", "--batch", "2", "--repeats", "1", "--json", str(path)])

    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("dwconv_t"))
    report = json.loads(path.read_text(encoding="utf-8"))
    (row,) = report["rows"]
    assert line.count("(1.00)") == 2
    assert (report["batch"], report["pixels"], report["dtype"]) == (2, 32, "float32")
    assert all(rate > 0 for rate in row["images_a_second"].values())
    # A training step keeps at least a gradient for each of 24 million weights.
    assert row["peak_mebibytes"]["training"] > 4 * 24e6 / 2**20
    assert row["peak_mebibytes"]["training"] > row["peak_mebibytes"]["inference"] > 0
