"""A transfer without a run and without Ray: of a preset, a file, or a timm network.

Its processes are torchrun's where torchrun started this one, else started here, one a device. No
ledger is charged. The same call goes on after a kill.
"""

from __future__ import annotations

from dataclasses import replace
from tempfile import TemporaryDirectory

import torch
from torch.multiprocessing.spawn import ProcessContext, spawn

from search.retraining.out_folder import RESULT_FILE
from search.transferring.network import TransferOptions, transfer
from search.transferring.result import TransferResult, open_transferred
from supernet.data.dense import DenseData
from supernet.dense.target import Target
from supernet.dense.training import StepReport
from supernet.recipes import DenseRecipe
from supernet.training import TrainingStopped


def transfer_alone(
    architecture: Target,
    data: DenseData,
    recipe: DenseRecipe,
    options: TransferOptions,
    *,
    devices: int = 1,
) -> TransferResult | None:
    """Train and judge one network on so many devices of this machine.

    Returns:
        The result; None in processes of torchrun but the first.

    Raises:
        ValueError: As `search.transferring.network.transfer`.
    """
    if devices == 1 or (options.out / RESULT_FILE).exists():
        return transfer(architecture, data, recipe, options)
    if recipe.num_shards % devices:
        raise ValueError(
            f"A step of {recipe.name} has {recipe.num_shards} shards, which {devices} devices "
            "cannot share evenly. Choose --devices that divides them."
        )
    options.out.mkdir(parents=True, exist_ok=True)
    # What is called back stays here: the processes say where they stand themselves.
    plain = replace(options, on_report=None, should_stop=None)
    with TemporaryDirectory() as folder:
        processes = spawn(  # type: ignore[no-untyped-call]
            _process,
            (architecture, data, recipe, plain, f"file://{folder}/meeting", devices),
            nprocs=devices,
            join=False,
        )
        _wait(processes, options)
    return open_transferred(options.out).result


def _wait(processes: ProcessContext, options: TransferOptions) -> None:
    """Wait for all processes; end them when the caller wants to stop or one has failed."""
    try:
        is_done = False
        while not is_done:
            is_done = processes.join(timeout=1.0)
            # A terminal sends Ctrl-C to the processes as well, which then end without a word.
            if options.should_stop is not None and options.should_stop():
                raise TrainingStopped("Stopped; the last checkpoint is kept.")
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()


def _process(
    rank: int,
    architecture: Target,
    data: DenseData,
    recipe: DenseRecipe,
    options: TransferOptions,
    address: str,
    devices: int,
) -> None:
    if options.device == "cuda":
        torch.cuda.set_device(rank)
    group = (address, devices, rank)
    transfer(
        architecture,
        data,
        recipe,
        replace(options, group=group, on_report=say_step if rank == 0 else None),
    )


def say_step(report: StepReport) -> None:
    """Print where a training stands."""
    left = report.seconds / max(report.images, 1)
    print(
        f"step {report.step} of {report.steps}: loss {report.loss:.3f}, "
        f"{1 / left if left else 0:,.1f} images/s",
        flush=True,
    )
