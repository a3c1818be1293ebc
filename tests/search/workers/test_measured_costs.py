"""What is measured of a network in a search, and who may be asked for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from search.record import Measured
from search.results.limits import is_within
from search.results.objectives import OBJECTIVES, parse_objectives
from search.run_folder.settings import RunSettings
from search.workers.job import make_job
from search.workers.judge_worker import JudgeWorker
from search.workers.measured_costs import device_name, measure_costs, time_latency
from searchspace.cost import count
from searchspace.deployment import Deployment
from searchspace.latency_table import Latency, LatencyTable, macro_of, parts_of
from supernet.data import prepare_data
from supernet.network.supernet import build_subnet
from tests.tiny_trials import network, trial


def test_latency_is_a_median_inside_its_interval() -> None:
    found = time_latency(build_subnet(network(1)), network(1))
    assert 0 < found.latency_low_ms <= found.latency_ms <= found.latency_high_ms


def test_one_thread_is_timed_by_the_processor_and_several_by_the_wall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clocks = []
    monkeypatch.setattr(
        "search.workers.measured_costs.time_calls",
        lambda run, clock: clocks.append(clock.__name__) or [1e-3] * 30,
    )
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        time_latency(build_subnet(network(1)), network(1))
    assert clocks == ["thread_time", "perf_counter"]


def test_only_what_is_weighed_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    subnet = build_subnet(network(1))
    assert measure_costs(subnet, network(1), ()) == Measured()
    monkeypatch.setattr(
        "search.workers.measured_costs.time_latency", lambda *_: Measured(latency_ms=7.0)
    )
    assert measure_costs(subnet, network(1), ("latency_ms",)) == Measured(latency_ms=7.0)


def test_a_table_is_asked_instead_of_this_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "search.workers.measured_costs.time_latency", lambda *_: pytest.fail("it was timed")
    )
    parts = {part: Latency(0.5, 0.4, 0.6) for part in parts_of(network(1))}
    table = LatencyTable(
        macro=macro_of(network(1)),
        deployment=Deployment(target="onnxruntime"),
        device="an edge box",
        threads=1,
        versions="onnxruntime 1",
        measured_on="2026-11-29",
        parts=parts,
        scale=2.0,
        per_network_ms=3.0,
    )

    found = measure_costs(build_subnet(network(1)), network(1), ("latency_ms",), table=table)

    assert found == Measured(latency_ms=3.0 + 2.0 * 0.5 * len(parts_of(network(1))))


def test_a_precision_is_timed_in_a_copy() -> None:
    subnet = build_subnet(network(1))
    seen: list[torch.dtype] = []
    subnet.patch_embed.register_forward_hook(lambda _module, args, _out: seen.append(args[0].dtype))

    time_latency(subnet, network(1), Deployment(precision="bf16", batch=2))

    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in subnet.parameters()} == {torch.float32}


def test_a_warm_judge_scores_without_a_supernet_and_measures_costs(tmp_path: Path) -> None:
    settings = RunSettings(
        data="digits",
        budget="1cpu-minute",
        strategy="zero-cost",
        objectives=parse_objectives("top1, latency, memory"),
    )
    data = prepare_data("digits", img_size=32, folder=tmp_path / "data")
    worker = JudgeWorker(make_job(settings, tmp_path, data), threads=1)
    architecture = settings.load_space().replace(num_classes=10).first()
    ((by_macs, no_cause),) = worker.judge([architecture], "macs")
    ((by_nwot, _),) = worker.judge([architecture], "nwot")
    assert no_cause is None
    assert by_macs.score > 0
    assert worker.proxy_scores([architecture])[architecture.key]["nwot"] == by_nwot.score
    assert by_macs.latency_low_ms <= by_macs.latency_ms <= by_macs.latency_high_ms
    assert by_macs.memory_mib == by_nwot.memory_mib > 4 * count(architecture).params / 2**20


def test_what_was_not_measured_is_within_no_limit() -> None:
    assert is_within(trial(1, correct=1, latency_ms=2.0), {"latency_ms": 2.0})
    assert not is_within(trial(1, correct=1, latency_ms=2.1), {"latency_ms": 2.0})
    assert not is_within(trial(1, correct=1), {"latency_ms": 2.0})
    assert not is_within(trial(1, correct=1, latency_ms=1.0), {"memory_mib": 9.0})
    assert parse_objectives("top1,latency,macs") == ("top1", "latency_ms", "macs")
    assert "latency_ms" in OBJECTIVES


def test_this_machines_processor_has_a_name() -> None:
    assert device_name("cpu").endswith("thread(s)")
    assert len(device_name("cpu")) > len(", 1 thread(s)")


def test_a_limit_that_is_measured_is_none_of_the_space() -> None:
    settings = RunSettings(
        data="digits",
        budget="1cpu-minute",
        objectives=("top1", "latency_ms"),
        limits={"macs": 1e6, "latency_ms": 3.0},
    )
    assert settings.load_space().limits == {"macs": 1e6}
    assert settings.measured_limits == {"latency_ms": 3.0}
