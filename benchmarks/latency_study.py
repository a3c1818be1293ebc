"""Latency of ten networks by runtime: orders, accuracy of int8, errors of the tables' sums.

    python benchmarks/latency_study.py --run runs/digits [--targets eager,onnxruntime] [--out FILE]

The networks are drawn from a small part of the space `digits`, so that a table has few parts; with
--run they have the weights of that run's supernet, recalibrated, and their accuracy on its search
split is measured in float32 and in int8. Without --run there is no accuracy, and --img-size and
--widths may say other sizes. One thread, timed by its processor time; medians of 21 runs in turn.
The result is written after each target, and a target that is in the file already is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from scipy.stats import kendalltau

from search.deployed import Job, Kit, open_network, time_in_turn
from search.deployed.exporting import Wanted, export_kit, write_file
from search.deployed.fitting import Times, fit_table
from search.deployed.kit import CALL, opener
from search.deployed.measuring import network_job, table_of
from search.deployed.quantising import quantise
from searchspace.architecture import Architecture
from searchspace.clocks import clock_for
from searchspace.deployment import Deployment, runtime_version
from searchspace.latency_table import (
    Checked,
    LatencyTable,
    latency_of,
    macro_of_space,
    processor_name,
)
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space
from supernet.measuring import measure_table

NETWORKS, FITTED = 10, 8
CALIBRATION = 64
SPACE = """
name: latency_study
img_size: {img_size}
patch_size: 4
mlp_ratio: [2, 1]
choices_per: stage
stages:
  - {{dim: {first}, depth: [1, 2]}}
  - {{dim: {second}, depth: [2, 1]}}
mixers:
  window_attention: {{window_size: 4, num_heads: 4, terms: [qk+bias], norm: [softmax]}}
  neighborhood_attention: {{kernel_size: 3, num_heads: 4, terms: [qk+bias], norm: [softmax]}}
  depthwise_conv: {{kernel_size: 5}}
  inhomogeneous_depthwise_conv: {{kernel_size: 3, num_groups: 8}}
  elsa: {{kernel_size: 3, num_heads: 4, lam: [1], gamma: [1]}}
"""
ALL = (
    "eager:fp32", "onnxruntime:fp32", "openvino:fp32", "onnxruntime:int8", "openvino:int8",
    "compiled:fp32",
)  # fmt: skip


def main() -> None:
    """Measure what was asked for."""
    options = parse()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    space, networks, fitted = draw(options)
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    found |= {"device": processor_name(), "torch": torch.__version__, "img_size": space.img_size}
    found["networks"] = [str(one.key) for one in networks]
    if options.run and "accuracy" not in found:
        found["accuracy"] = accuracies(options.run, networks)
        keep(options.out, found)
    targets = found.setdefault("targets", {})
    for name in filter(None, options.targets.split(",")):
        if name in targets:
            continue
        print(f"{name} ...", flush=True)
        if options.whole_only:
            targets[name] = whole_only(networks, name)
        else:
            targets[name] = measured(space, networks, fitted, name, options.kits)
        keep(options.out, found)
    for path in options.beside:
        targets |= json.loads(path.read_text())["targets"]
    show(found)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--targets", default=",".join(ALL))
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--widths", default="32,64")
    parser.add_argument("--whole-only", action="store_true", help="make no table")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="show these as well")
    parser.add_argument("--out", type=Path, default=Path("latency_study.json"))
    parser.add_argument("--kits", type=Path, default=Path(tempfile.mkdtemp()))
    return parser.parse_args()


def keep(path: Path, found: Mapping[str, Any]) -> None:
    """Write the result so far."""
    path.write_text(json.dumps(found, indent=1) + "\n")


def draw(options: argparse.Namespace) -> tuple[SearchSpace, list[Architecture], list[Architecture]]:
    """Draw networks that are all different: ten, and those that sums are fitted to."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = options.widths.split(",")
        path = Path(folder) / "space.yaml"
        path.write_text(SPACE.format(img_size=options.img_size, first=first, second=second))
        space = load_space(str(path)).replace(num_classes=10)
    rng = random.Random(0)
    networks = list({one.key: one for one in (space.sample(rng) for _ in range(200))}.values())
    assert len(networks) >= NETWORKS + FITTED
    return space, networks[:NETWORKS], networks[NETWORKS : NETWORKS + FITTED]


def measured(
    space: SearchSpace,
    networks: Sequence[Architecture],
    fitted: Sequence[Architecture],
    name: str,
    kits: Path,
) -> dict[str, Any]:
    """Measure the ten networks and a table of their parts, as run by one target."""
    target, precision = name.split(":")
    deployment = Deployment(target=target, precision=precision)
    wanted = Wanted(
        macro=macro_of_space(space),
        networks=[*networks, *fitted],
        fitted=fitted,
        checked=networks,
    )
    rng, device = random.Random(0), torch.device("cpu")
    if target == "eager":
        table, checked = measure_table(
            space, device=device, deployment=deployment, whole=networks, rng=rng
        )
    elif deployment.in_torch:
        table, checked = table_of(
            wanted, deployment, device=device, rng=rng, progress=lambda done, total: None
        )
    else:
        table, checked, fastest = by_files(wanted, deployment, kits / precision)
        return described(table, checked) | {
            "fastest_ms": [one.measured.median_ms for one in fastest],
            "fastest_errors": [one.error for one in fastest],
        }
    return described(table, checked)


def whole_only(networks: Sequence[Architecture], name: str) -> dict[str, Any]:
    """Time the ten networks in turn, without a table: where compiling takes minutes."""
    target, precision = name.split(":")
    deployment, device = Deployment(target=target, precision=precision), torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        jobs = [network_job(one, deployment, device, folder=Path(folder)) for one in networks]
        seconds = time_in_turn(jobs, clock=clock_for(1), rng=random.Random(0))
    found = [latency_of(runs) for runs in seconds]
    return {
        "versions": runtime_version(deployment),
        "ms": [one.median_ms for one in found],
        "low_ms": [one.low_ms for one in found],
        "high_ms": [one.high_ms for one in found],
        "fastest_ms": [1000 * min(runs) for runs in seconds],
    }


def by_files(
    wanted: Wanted, deployment: Deployment, folder: Path
) -> tuple[LatencyTable, list[Checked], list[Checked]]:
    """Measure files that the runtimes of one precision share.

    Returns:
        The table, the ten networks beside it, and both again by the fastest run of each file
        instead of the median: what a machine that is busy with other work disturbs least.
    """
    plain = folder.with_name("fp32")
    if (folder / "kit.json").is_file():
        kit = Kit.load(folder)
    elif deployment.precision == "int8" and (plain / "kit.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        kit = dataclasses.replace(Kit.load(plain), deployment=deployment)
        for file in kit.files:
            quantise(plain / file, folder / file)
        kit.save(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        kit = export_kit(folder, wanted, deployment)
    jobs = [Job(opener(folder / file, deployment, 1)) for file in kit.files]
    runs = time_in_turn(jobs, clock=clock_for(1), rng=random.Random(0))
    seconds = dict(zip(kit.files, runs, strict=True))
    begun = LatencyTable.begun(kit.macro, deployment, device=processor_name(), threads=1)
    table, checked = fit_table(begun, times_of(kit, seconds))
    fastest = {file: [min(found)] for file, found in seconds.items()}
    return table, checked, fit_table(begun, times_of(kit, fastest))[1]


def times_of(kit: Kit, seconds: Mapping[str, Sequence[float]]) -> Times:
    """Say whose the seconds of a kit's files are."""
    return Times(
        call=seconds[CALL],
        parts={part: seconds[file] for part, file in kit.parts.items()},
        fitted=[(one.architecture, seconds[one.file]) for one in kit.wholes if one.is_fitted],
        checked=[(one.architecture, seconds[one.file]) for one in kit.wholes if not one.is_fitted],
    )


def described(table: LatencyTable, checked: Sequence[Checked]) -> dict[str, Any]:
    """Keep what is reported; the same table without its fit shows what the fit is for."""
    plain = dataclasses.replace(table, scale=1.0, per_network_ms=0.0)
    return {
        "versions": table.versions,
        "measured_on": table.measured_on,
        "parts": len(table.parts),
        "scale": table.scale,
        "per_network_ms": table.per_network_ms,
        "ms": [one.measured.median_ms for one in checked],
        "low_ms": [one.measured.low_ms for one in checked],
        "high_ms": [one.measured.high_ms for one in checked],
        "errors": [one.error for one in checked],
        "unfitted_errors": [
            plain.predict(one.architecture) / one.measured.median_ms - 1 for one in checked
        ],
    }


def accuracies(run: Path, networks: Sequence[Architecture]) -> list[dict[str, float]]:
    """Judge each network with a run's shared weights: float32 by torch and by ONNX, and int8."""
    from search.run_folder import open_run
    from search.workers.job import make_job
    from search.workers.judge_worker import Evaluator
    from supernet.network import extract
    from supernet.shared_weights import load_supernet
    from supernet.training import evaluate, recalibrate

    with open_run(run) as folder:
        job = make_job(folder.settings, folder.folder, folder.data())
        supernet = load_supernet(folder.supernet_folder(), job.space)
    evaluator = Evaluator(job, supernet=supernet)
    images = torch.cat([batch for batch, _ in evaluator.batches])
    labels = torch.cat([batch for _, batch in evaluator.batches]).numpy()
    calibration = torch.cat(list(evaluator.calibration))[:CALIBRATION].split(1)
    found = []
    for one in networks:
        network = extract(supernet, one)
        recalibrate(network, evaluator.calibration)
        judged = evaluate(network, evaluator.batches, "cpu", amp="none")
        row = {"torch": 100 * judged.correct / judged.total, "images": float(judged.total)}
        for precision in ("fp32", "int8"):
            row[precision] = by_onnxruntime(network, images, labels, calibration, precision)
        print(row, flush=True)
        found.append(row)
    return found


def by_onnxruntime(
    network: torch.nn.Module,
    images: torch.Tensor,
    labels: np.ndarray[Any, Any],
    calibration: Sequence[torch.Tensor],
    precision: str,
) -> float:
    """Return the accuracy of a network's file, percent."""
    deployment = Deployment(target="onnxruntime", precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_file(path, network, images[:1], deployment, calibration=calibration)
        opened = open_network(path, deployment, threads=1)
    logits = np.concatenate([opened.run(image.numpy()) for image in images.split(1)])
    return 100 * float((logits.argmax(1) == labels).mean())


def show(found: Mapping[str, Any]) -> None:
    """Print the tables of docs/measurements/latency.md."""
    targets: dict[str, Any] = found["targets"]
    print(f"{found['device']}, torch {found['torch']}, {found['img_size']} pixels")
    head = ["", *targets, *(("top1 fp32", "top1 int8") if "accuracy" in found else ())]
    print(line(head))
    print(line(["---"] * len(head)))
    for number in range(len(found["networks"])):
        row = [str(number + 1), *(f"{best(one)[number]:.3f}" for one in targets.values())]
        if "accuracy" in found:
            judged = found["accuracy"][number]
            row += [f"{judged['fp32']:.1f}", f"{judged['int8']:.1f}"]
        print(line(row))
    print("\nKendall's tau")
    print(line(["", *targets]))
    print(line(["---"] * (1 + len(targets))))
    for name, one in targets.items():
        taus = [kendalltau(best(one), best(other)).statistic for other in targets.values()]
        print(line([name, *(f"{tau:.2f}" for tau in taus)]))
    print("\nErrors of sums, percent")
    heads = ["", "parts", "median", "largest", "bias", "unfitted", "fastest runs"]
    print(line([*heads, "scale", "ms more"]))
    print(line(["---"] * 9))
    for name, one in targets.items():
        if "errors" not in one:
            continue
        errors, plain = 100 * np.array(one["errors"]), 100 * np.array(one["unfitted_errors"])
        fastest = 100 * np.array(one.get("fastest_errors", [np.nan]))
        cells = [
            np.median(abs(errors)), abs(errors).max(), np.median(errors), np.median(abs(plain)),
            np.median(abs(fastest)),
        ]  # fmt: skip
        fit = [f"{one['scale']:.3f}", f"{one['per_network_ms']:.3f}"]
        print(line([name, str(one["parts"]), *(f"{cell:.1f}" for cell in cells), *fit]))


def best(target: Mapping[str, Any]) -> list[float]:
    """Return the milliseconds of the fastest runs, where they are known, or else the medians."""
    found: list[float] = target.get("fastest_ms", target["ms"])
    return found


def line(cells: Sequence[str]) -> str:
    """Write a row of a table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
