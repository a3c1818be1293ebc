"""The benchmark against rooflines: what it counts, what it calls a share, what it refuses."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import bench_roofline
from benchmarks.bench_roofline import check, main, make_row
from benchmarks.machine_limits import Limits
from benchmarks.operators import OPERATORS, Operator, Work, count_work
from benchmarks.rivals import Setting, Side, Unavailable
from benchmarks.timing import forcing, median_seconds
from supernet.kernels.select import VARIABLE

TINY = ["--shape", "9x8x2", "--batch", "2", "--kernel-size", "3", "--quick", "--device", "cpu"]
LIMITS = Limits(copy_bytes=100.0, matmul_flops=50.0, fma_flops=10.0)

# Two maps of 6 x 6 pixels with 8 channels and 2 heads: 576 elements; 1296 of 9 taps; a product of
# each channel with 9 others is 2 * 576 * 9 = 10368 operations.
MAP, TAPS, PRODUCT = 576, 1296, 10368
# Elements of operands and of the result; products forward and backward.
BY_HAND = {
    "aggregate": (TAPS + MAP, MAP, 1, 2),
    "depthwise_conv": (MAP + 8 * 9 + 8, MAP, 1, 2),
    "neighborhood_logits": (2 * MAP, TAPS, 1, 2),
    "hadamard_conv": (2 * MAP + 9 * 8 * 4 + 8, MAP, 4, 8),
    # Backward: the weights again, and both gradients of both products.
    "neighborhood_attention": (3 * MAP, MAP, 2, 5),
    "neighborhood_attention_four_terms": (3 * MAP + 9 * 8 + 9 * 8 + 9 * 2, MAP, 4, 11),
    "window_attention": (3 * MAP + 25 * 2, MAP, 2, 4),
}


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("name", OPERATORS)
def test_bytes_and_operations_are_those_counted_by_hand(
    name: str, dtype: torch.dtype, size: int
) -> None:
    operator = OPERATORS[name](2, 8, Setting(side=6, heads=2, kernel_size=3))
    operands, result, forward, backward = BY_HAND[name]

    work = count_work(operator, dtype)

    assert work == {
        "forward": Work(bytes=size * (operands + result), flops=forward * PRODUCT),
        "backward": Work(bytes=size * (2 * operands + result), flops=backward * PRODUCT),
    }


@pytest.mark.parametrize(
    ("work", "limit", "fma_limit"),
    [
        (Work(bytes=200, flops=15), 2.0, 2.0),  # memory
        (Work(bytes=200, flops=50), 2.0, 5.0),  # memory, unless tensor cores are out of reach
        (Work(bytes=200, flops=200), 4.0, 20.0),  # arithmetic
    ],
)
def test_a_share_is_the_longer_limit_over_the_measured_time(
    work: Work, limit: float, fma_limit: float
) -> None:
    row = make_row(work, LIMITS, 40.0, {"operator": "", "shape": ""}, "c", "forward")

    assert (row.limit_seconds, row.fma_limit_seconds) == (limit, fma_limit)
    assert (row.share, row.fma_share) == (limit / 40, fma_limit / 40)


def test_it_prints_every_operator_and_writes_every_row(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main([*TINY, "--json", str(tmp_path / "rows.json")])

    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert all(f"\n{name}, B2 9x9x8 h2 K3:" in printed for name in OPERATORS)
    assert {row["operator"] for row in report["rows"]} == set(OPERATORS)
    assert {"device", "torch", "triton", "date", "dtype"} <= set(report)
    for row in report["rows"]:
        if row["note"] is None:
            assert row["share"] == pytest.approx(row["limit_seconds"] / row["seconds"])
    timed = {
        (row["operator"], row["side"], row["mode"]) for row in report["rows"] if row["seconds"]
    }
    for name in OPERATORS:
        assert {(name, "torch", mode) for mode in ("forward", "backward")} <= timed
    assert ("neighborhood_attention", "dense_sdpa", "backward") in timed
    assert ("depthwise_conv", "conv2d_channels_last", "backward") in timed


def test_a_side_that_cannot_run_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    main([*TINY, "--dtype", "bfloat16", "--operator", "aggregate"])

    printed = capsys.readouterr().out
    assert "skipped: MIXER_KERNELS=c needs a working C compiler" in printed
    assert "torch  " in printed


def _rival(operands: tuple[Tensor, ...], setting: Setting, *, error: float | Exception) -> Side:
    if isinstance(error, Exception):
        raise error
    return Side(function=lambda x: 2 * x + error, inputs=operands)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Unavailable("it rains"), "skipped: it rains"),
        (RuntimeError("no kernel\nmore"), "failed: RuntimeError: no kernel\n"),
        (1.0, "failed: ArithmeticError: the result is wrong by"),
    ],
    ids=["unavailable", "crashes", "wrong"],
)
def test_a_wrong_rival_is_not_timed(
    error: float | Exception,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    rival = functools.partial(_rival, error=error)
    functools.update_wrapper(rival, _rival)
    monkeypatch.setitem(
        OPERATORS,
        "double",
        lambda batch, channels, setting: Operator(
            operands=((batch, setting.side, setting.side, channels),),
            function=lambda x: x + x,
            formulations=("torch",),
            rivals=(rival,),
        ),
    )
    path = tmp_path / "rows.json"

    ends = "failed or are wrong.*double" if "failed" in said else None
    if ends:
        with pytest.raises(SystemExit, match=f"(?s){ends}"):
            main([*TINY, "--operator", "double", "--json", str(path)])
    else:
        main([*TINY, "--operator", "double", "--json", str(path)])

    assert said in capsys.readouterr().out
    seconds = {row["side"]: row["seconds"] for row in json.loads(path.read_text())["rows"]}
    assert seconds["torch"] is not None
    assert seconds["_rival"] is None


def test_results_may_differ_within_the_margin_only() -> None:
    reference = torch.ones(1, 5, 5, 1)
    border, centre = reference.clone(), reference.clone()
    border[0, 1, 2], centre[0, 2, 2] = 3, 3

    check([border], [reference], margin=2, tolerance=0.1)
    with pytest.raises(ArithmeticError, match=r"wrong by 2\.0e\+00"):
        check([border], [reference], margin=1, tolerance=0.1)
    with pytest.raises(ArithmeticError, match="wrong"):
        check([centre], [reference], margin=2, tolerance=0.1)
    with pytest.raises(ArithmeticError, match="wrong by nan"):
        check([reference * torch.nan], [reference], margin=0, tolerance=0.1)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("56x96", "side x channels x heads"),
        ("0x96x3", "at least 1, got '0'"),
        ("56x96x5", "must divide the channels, got '56x96x5'"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(
    text: str, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench_roofline.parse(["--shape", text])

    assert rule in capsys.readouterr().err


def test_sides_run_in_turn_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    times = {"a": iter([100.0, 1.0, 5.0, 3.0]), "b": iter([100.0, 2.0, 2.0, 8.0])}

    def timer(run: object) -> float:
        return next(times[run()])  # type: ignore[operator]

    def side(name: str) -> str:
        order.append(name)
        return name

    runs = {name: functools.partial(side, name) for name in "ab"}
    medians = median_seconds(runs, repeats=3, timer=timer)

    assert "".join(order) == "abababab"
    assert medians == {"a": 3.0, "b": 2.0}


@pytest.mark.parametrize("before", ["naive", None])
def test_forcing_a_formulation_ends_with_its_block(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if before:
        monkeypatch.setenv(VARIABLE, before)

    with forcing("torch"):
        inside = os.environ[VARIABLE]

    assert (inside, os.environ.get(VARIABLE)) == ("torch", before)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_chain_of_a_gpu_is_all_fused_multiply_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from benchmarks import fma_chain

    signature = {"out": "*fp32", "rounds": "i32", "factor": "fp32", "addend": "fp32"}
    constants = {"unrolled": fma_chain.UNROLLED, "block": fma_chain.BLOCK}
    names = fma_chain._chains.arg_names
    source = ASTSource(
        fma_chain._chains, {name: signature.get(name, "constexpr") for name in names}, constants
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})

    # Those of a thread (of 128) in one turn of its loop.
    wanted = fma_chain.UNROLLED * fma_chain.BLOCK // 128
    assert kernel.asm["ptx"].count("fma.rn.f32") == wanted
