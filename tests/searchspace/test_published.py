"""Published accuracies belong to presets and name their table."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from searchspace.presets import PRESETS, preset
from searchspace.published import PUBLISHED

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "imagenet_classification.csv"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_accuracy_is_of_a_preset_and_has_a_source(name: str) -> None:
    assert name in PRESETS
    assert re.fullmatch(r"(Han|Zhou) et al\. 202[23], Table \d+", PUBLISHED[name].source)


def test_published_accuracies_stand_in_the_tables_that_they_name() -> None:
    if not REFERENCE.is_file():
        pytest.skip("the papers' numbers (../shared/reference) are not on this machine")
    with REFERENCE.open(newline="") as file:
        rows = {(row["source"], row["table"], row["top1"]) for row in csv.DictReader(file)}

    for published in PUBLISHED.values():
        match = re.match(r"(\w+) et al\. (\d+), Table (\d+)", published.source)
        assert match is not None
        paper, table = f"{match[1].lower()}{match[2]}", f"T{match[3]}"
        assert (paper, table, str(published.top1)) in rows


def test_a_training_that_had_more_than_300_epochs_with_labels_says_so() -> None:
    """Han et al. 2022, Section F: learned at 224 pixels, then trained on at 384."""
    larger = {name for name in PUBLISHED if preset(name).img_size != 224}
    assert larger
    assert all(str(PUBLISHED[name]).endswith("trained on from 224 pixels") for name in larger)
    taught = {name for name in PUBLISHED if preset(name).family == "volo"}
    assert all(str(PUBLISHED[name]).endswith("with token labels") for name in taught)
    others = PUBLISHED.keys() - larger - taught
    assert all(str(PUBLISHED[name]) == PUBLISHED[name].source for name in others)


def test_every_preset_of_a_papers_table_has_its_accuracy() -> None:
    of_a_table = {
        name
        for name, found in PRESETS.items()
        if re.search(r"(Han et al\. 2022|Zhou et al\. 2023), Table", found.about)
    }

    without = of_a_table - PUBLISHED.keys()

    # Trained on at another resolution, or on ImageNet-22k before; of inferred settings; diverged.
    trained_on = {name for name in without if re.fullmatch(r"(elsa_)?volo_d\d_\d{3}", name)}
    inferred = {name for name in without if "settings inferred" in PRESETS[name].about}
    others = {"elsa_swin_l", "elsa_swin_l_384", "net7_t_id"}
    assert without == trained_on | inferred | others
