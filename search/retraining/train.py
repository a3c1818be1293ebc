"""Train one network, of a preset, a file or a run, without Ray: alone or under torchrun.

    python -m search.retraining.train elsa_swin_t --data imagenet/ --out elsa
    torchrun --nproc-per-node 8 -m search.retraining.train swin_t --data imagenet/ --out swin

It is the training of `search retrain`, with the same folder at its end; no ledger is charged. The
same command goes on after a kill, with any number of processes that divides the recipe's shards.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer

from search.results import accuracy_text
from search.retraining.network import RetrainOptions, retrain
from search.retraining.out_folder import claimed_training
from search.retraining.teachers import look_for_teacher
from search.retraining.together import first_goes_first, joined_torchrun
from search.retraining.wanted import check_network, start_weights
from search.run_folder import load_target
from search.terminal import StopSignals
from supernet.data import open_unlabelled, prepare_data, prepare_unlabelled
from supernet.recipes import load_recipe, with_epochs
from supernet.training import (
    EpochReport,
    check_teacher,
    check_token_labels,
    check_unlabelled,
    with_shards_for,
)

DATA_FOLDER = "data"


def main(
    target: Annotated[str, typer.Argument(help="A preset, a JSON file, or RUN:ID.")],
    data: Annotated[str, typer.Option(help="As for search run.")],
    out: Annotated[Path, typer.Option(help="Folder that it leaves.")],
    recipe: Annotated[str, typer.Option(help="Name, NAME:SIZE or file.")] = "swin_300e:tiny",
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of weights and training.")] = 0,
    device: Annotated[str | None, typer.Option(help="Default: cuda where there is one.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Default: 8 for a GPU.")] = None,
    token_labels: Annotated[Path | None, typer.Option(help="Folder of label maps.")] = None,
    start: Annotated[Path | None, typer.Option(help="As for search retrain.")] = None,
    teacher: Annotated[str | None, typer.Option(help="As for search retrain.")] = None,
    unlabelled: Annotated[Path | None, typer.Option(help="As for search retrain.")] = None,
) -> None:
    """Train a network with a recipe and judge it once on the test split."""
    chosen = load_recipe(recipe)
    chosen = chosen if epochs is None else with_epochs(chosen, epochs)
    architecture = load_target(target)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # What needs no images is looked at before these are decoded.
    check_token_labels(chosen, given=token_labels is not None)
    check_teacher(chosen, given=teacher is not None)
    check_unlabelled(chosen, given=unlabelled is not None, is_taught=teacher is not None)
    build_teacher = None if teacher is None else look_for_teacher(teacher)
    weights = None if start is None else start_weights(start)
    if unlabelled is not None:
        open_unlabelled(unlabelled)
    with ExitStack() as own, joined_torchrun(device) as is_first:
        if is_first:
            own.enter_context(claimed_training(out))
        with first_goes_first(is_first):
            images = prepare_data(data, img_size=architecture.img_size, folder=out / DATA_FOLDER)
            architecture = architecture.replace(num_classes=images.num_classes)
            taught_by = None if build_teacher is None else build_teacher(images)
            check_network(architecture, images, chosen, start=weights, teacher=taught_by)
            more = None if unlabelled is None else prepare_unlabelled(unlabelled, images, out)
        devices = dist.get_world_size() if dist.is_initialized() else 1
        num_images = len(images.full_train()) + (0 if more is None else more.count)
        chosen = with_shards_for(chosen, num_images, devices)
        with StopSignals() as stop:
            result = retrain(
                architecture,
                images,
                chosen,
                RetrainOptions(
                    out=out / "network",
                    seed=seed,
                    device=device,
                    threads=None if device == "cuda" else 1,
                    on_epoch=_say if is_first else None,
                    should_stop=lambda: stop.requested is not None,
                    start=weights,
                    start_name=f"those of {start}",
                    token_labels=token_labels,
                    teacher=taught_by,
                    unlabelled=more,
                    loader_workers=(8 if device == "cuda" else 0) if workers is None else workers,
                ),
            )
    if is_first:
        text = accuracy_text(result.accuracy.correct, result.accuracy.total, "test images")
        print(f"{text}. {out / 'network'}")


def _say(report: EpochReport) -> None:
    print(
        f"epoch {report.epoch} of {report.epochs}: loss {report.loss:.3f}, "
        f"{report.images / report.seconds:,.0f} images/s",
        flush=True,
    )


if __name__ == "__main__":
    try:
        typer.run(main)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
