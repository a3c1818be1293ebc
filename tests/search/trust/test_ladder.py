"""The ladder's steps: the same weights give the same accuracy, and every step stands alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from search.record.record import Record
from search.run_folder.folder import RunFolder, create_run
from search.run_folder.settings import RunSettings
from search.trust.ladder import STEPS, climb
from searchspace.cost import count
from supernet.recipes.recipe import load_recipe
from supernet.shared_weights.trainer import SupernetTrainer

SPACE = """
name: tiny
img_size: 8
patch_size: 4
stages: [{dim: 8, depth: 1}, {dim: 16, depth: 1}]
mixers:
  window_attention: {window_size: 2, num_heads: [1, 2]}
  depthwise_conv: {kernel_size: [3, 5]}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    folder = tmp_path_factory.mktemp("ladder")
    (folder / "tiny.yaml").write_text(SPACE)
    settings = RunSettings(
        data="digits",
        budget="1cpu-minutes",
        space=str(folder / "tiny.yaml"),
        trial_recipe="quick",
        projections="shared",
    )
    with create_run(folder / "run", settings) as opened:
        recipe = load_recipe("supernet")
        trainer = SupernetTrainer(
            opened.space(),
            opened.data(),
            recipe,
            strategy="uniform",
            total_steps=30,
            seed=0,
            sharing=settings.sharing,
        )
        trainer.run(30)
        trainer.save(opened.folder / "supernet")
        add_network(opened.record, opened)
        opened.record.set_meta("plan", {})
        yield opened


def add_network(record: Record, run: RunFolder) -> None:
    architecture = run.space().extreme("macs", largest=False)
    cost = count(architecture)
    record.add_architecture(architecture, params=cost.params, macs=cost.macs)


def test_every_step_is_judged_on_the_same_images(run: RunFolder) -> None:
    rungs = {rung.step: rung.accuracy for rung in climb(run, 1, epochs=1)}
    assert tuple(rungs) == STEPS
    assert {accuracy.total for accuracy in rungs.values()} == {run.data().sizes["search"]}
    # Extraction is exact, so nothing is won or lost by it.
    assert rungs["extracted"] == rungs["inside"]


def test_a_step_taken_alone_gives_the_same(run: RunFolder) -> None:
    for step in STEPS:
        (alone,) = climb(run, 1, steps=(step,), epochs=1)
        assert alone in list(climb(run, 1, epochs=1))


def test_an_unknown_step_or_a_run_without_a_supernet_is_refused(
    run: RunFolder, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"'polished'. The steps are inside, extracted"):
        list(climb(run, 1, steps=("polished",), epochs=1))
    with create_run(tmp_path / "new", run.settings) as fresh:
        add_network(fresh.record, fresh)
        fresh.record.set_meta("plan", {})
        with pytest.raises(ValueError, match="No supernet in"):
            list(climb(fresh, 1, epochs=1))
