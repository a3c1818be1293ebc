"""Train one network as a backbone without Ray: alone or under torchrun.

    python -m search.transferring.train swin_t --data coco/ --recipe mask_rcnn_3x:tiny --out swin
    torchrun --nproc-per-node 8 -m search.transferring.train swin_t --data coco/ \
        --recipe mask_rcnn_3x:tiny --out swin

It is the training of `search transfer`, with the same folder at its end; no ledger is charged. The
same command goes on after a kill, with any number of processes that divides the recipe's shards.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer

from search.terminal import StopSignals
from search.transferring.alone import say_step
from search.transferring.network import TransferOptions, transfer
from search.transferring.queue import load_weights
from search.transferring.result import result_text
from search.transferring.target import transfer_target
from supernet.data.dense import DenseData, open_dense_data
from supernet.recipes import load_dense_recipe, with_length
from supernet.training import TrainingStopped


def main(
    target: Annotated[str, typer.Argument(help="A preset, a JSON file, RUN:ID or timm:NAME.")],
    data: Annotated[str, typer.Option(help="Folder, or a tar of one.")],
    out: Annotated[Path, typer.Option(help="Folder that it leaves.")],
    recipe: Annotated[str, typer.Option(help="Name, NAME:SIZE or file.")],
    start: Annotated[Path | None, typer.Option(help="Weights to start from.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Instead of the recipe's length.")] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of the recipe's length.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights and training.")] = 0,
    device: Annotated[str | None, typer.Option(help="Default: cuda where there is one.")] = None,
    workers: Annotated[int | None, typer.Option(help="Default: 8 for a GPU.")] = None,
) -> None:
    """Train a network as a backbone with a recipe and judge it once."""
    chosen = with_length(load_dense_recipe(recipe), epochs=epochs, steps=steps)
    architecture = transfer_target(target)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    is_first = _join(device)
    try:
        found = _open(data, chosen.task, out, is_first=is_first)
        with StopSignals() as stop:
            result = transfer(
                architecture,
                found,
                chosen,
                TransferOptions(
                    out=out,
                    seed=seed,
                    data_source=str(Path(data).resolve()),
                    device=device,
                    threads=None if device == "cuda" else 1,
                    on_report=say_step if is_first else None,
                    should_stop=lambda: stop.requested is not None,
                    start=None if start is None else load_weights(start, architecture),
                    start_name="fresh" if start is None else f"from-{start.stem}",
                    loader_workers=(8 if device == "cuda" else 0) if workers is None else workers,
                ),
            )
    except TrainingStopped as stopped:
        print(f"{stopped} The same command goes on.")
        raise typer.Exit(130) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if result is not None and is_first:
        print(f"{result_text(result.values)}. {out}")


def _join(device: str) -> bool:
    """Join the group that torchrun's variables describe; tell whether this process is its first."""
    if "RANK" not in os.environ:
        return True
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    return dist.get_rank() == 0


def _open(data: str, task: str, out: Path, *, is_first: bool) -> DenseData:
    """Let the first process unpack the data, and the others find it."""
    if not is_first:
        dist.barrier()
    found = open_dense_data(data, task, unpack_to=out.with_name(f"{out.name}-data"))
    if is_first and dist.is_initialized():
        dist.barrier()
    return found


if __name__ == "__main__":
    try:
        typer.run(main)
    except ValueError as error:
        sys.exit(f"Error: {error}")
