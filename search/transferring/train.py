"""Train one network as a backbone without Ray: alone or under torchrun.

    python -m search.transferring.train swin_t --data coco/ --recipe mask_rcnn_3x:tiny --out swin
    torchrun --nproc-per-node 8 -m search.transferring.train swin_t --data coco/ \
        --recipe mask_rcnn_3x:tiny --out swin

It is the training of `search transfer`, with the same folder at its end; no ledger is charged. The
same command goes on after a kill, with any number of processes that divides the recipe's shards.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from search.retraining.together import first_goes_first, joined_torchrun
from search.terminal import StopSignals
from search.transferring.alone import say_step
from search.transferring.network import TransferOptions, transfer
from search.transferring.queue import find_dense_teacher, load_weights
from search.transferring.result import result_text
from search.transferring.target import transfer_target
from supernet.data.dense import open_dense_data
from supernet.recipes import load_dense_recipe, with_length


def main(
    target: Annotated[str, typer.Argument(help="A preset, a JSON file, RUN:ID or timm:NAME.")],
    data: Annotated[str, typer.Option(help="Folder, or a tar of one.")],
    out: Annotated[Path, typer.Option(help="Folder that it leaves.")],
    recipe: Annotated[str, typer.Option(help="Name, NAME:SIZE or file.")],
    start: Annotated[Path | None, typer.Option(help="Weights to start from.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Folder of a transfer.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Instead of the recipe's length.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Instead of the recipe's length.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of weights and training.")] = 0,
    device: Annotated[str | None, typer.Option(help="Default: cuda where there is one.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Default: 8 for a GPU.")] = None,
) -> None:
    """Train a network as a backbone with a recipe and judge it once."""
    chosen = with_length(load_dense_recipe(recipe), epochs=epochs, steps=steps)
    architecture = transfer_target(target)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with joined_torchrun(device) as is_first:
        with first_goes_first(is_first):
            unpacked = out.with_name(f"{out.name}-data")
            found = open_dense_data(data, chosen.task, unpack_to=unpacked)
            if is_first:
                found.check_files()
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
                    teacher=None if teacher is None else find_dense_teacher(teacher, found),
                    loader_workers=(8 if device == "cuda" else 0) if workers is None else workers,
                ),
            )
    if result is not None and is_first:
        print(f"{result_text(result.measured)}. {out}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
