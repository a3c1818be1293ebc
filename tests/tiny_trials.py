"""Finished trials of small networks, made without training anything."""

from __future__ import annotations

from dataclasses import replace

from search.record import Measured
from search.record.record import State, Trial
from searchspace.architecture import Architecture, Stage
from searchspace.cost import count
from searchspace.mixers import DepthwiseConv, Elsa, WindowAttention

NUM_IMAGES = 200


def network(number: int) -> Architecture:
    """Return one of many networks; a larger number has more parameters and MACs."""
    stages = (
        Stage(
            dim=8 * (number + 1),
            mixers=(DepthwiseConv(kernel_size=3), Elsa(kernel_size=5, num_heads=2, lam=1.0)),
        ),
        Stage(dim=16, mixers=(WindowAttention(window_size=2, num_heads=4, terms="qr+rk"),)),
    )
    return Architecture(img_size=16, patch_size=2, num_classes=10, stages=stages)


def trial(
    number: int,
    *,
    correct: int,
    total: int = NUM_IMAGES,
    fidelity: str = "train-3e",
    seed: int = 0,
    origin: str = "promote",
    state: State = "done",
    latency_ms: float | None = None,
    finished: float | None = None,
) -> Trial:
    """Return a trial of `network(number)` that got ``correct`` of ``total`` images right."""
    architecture = network(number)
    cost = count(architecture)
    measured = Measured.judged(correct, total)
    if latency_ms is not None:
        measured = replace(measured, latency_ms=latency_ms)
    return Trial(
        id=100 * number + seed + 1,
        architecture_id=number,
        key=architecture.key,
        architecture=architecture,
        params=cost.params,
        macs=cost.macs,
        fidelity=fidelity,
        seed=seed,
        origin=origin,
        state=state,
        measured=measured if state == "done" else Measured(),
        cause=None if state == "done" else "out of memory",
        seconds=1.0,
        num_attempts=1,
        finished=float(number) if finished is None else finished,
    )
