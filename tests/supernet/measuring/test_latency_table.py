"""The latency table: its parts make the networks, and it refuses what it did not measure."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from searchspace.deployment import Deployment
from searchspace.graft_space import graft_space
from searchspace.latency_table import (
    Latency,
    LatencyTable,
    Part,
    covering,
    macro_of,
    macro_of_space,
    median_interval,
    parts_of,
)
from searchspace.presets import preset
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space
from supernet.measuring.latency_table import _modules_of, measure_table
from supernet.network.supernet import build_subnet
from tests.tiny_graft import TEACHER

SPACE = load_space("digits")


def table_of(space: SearchSpace) -> LatencyTable:
    """Make a table of all different latencies, so that sums tell which were added."""
    parts = dict.fromkeys(
        part for network in covering(space, random.Random(0)) for part in parts_of(network)
    )
    return LatencyTable(
        macro=macro_of_space(space),
        deployment=Deployment(),
        device="an abacus",
        threads=1,
        versions="none",
        measured_on="2026-11-21",
        parts={part: Latency(random.Random(n).random(), 0.0, 0.0) for n, part in enumerate(parts)},
    )


@pytest.mark.parametrize("name", ["digits", "micro_depth", "micro_width"])
def test_covering_networks_have_every_part_that_random_ones_have(name: str) -> None:
    rng, space = random.Random(1), load_space(name)
    networks = covering(space, rng)
    covered = {part for network in networks for part in parts_of(network)}

    drawn = [space.sample(rng) for _ in range(300)]

    assert {part for network in drawn for part in parts_of(network)} <= covered
    assert {str(macro_of(network)) for network in drawn} == {str(macro_of(networks[0]))}


def test_a_table_of_a_graft_predicts_all_of_its_networks() -> None:
    """A block's own ratios of the MLP go with each of its mixers."""
    space, rng = graft_space(TEACHER), random.Random(1)
    table = table_of(space)
    assert all(table.predict(space.sample(rng)) > 0 for _ in range(200))


def test_a_prediction_is_the_sum_of_the_parts() -> None:
    table, architecture = table_of(SPACE), SPACE.sample(random.Random(2))

    assert table.predict(architecture) == sum(
        table.parts[part].median_ms for part in parts_of(architecture)
    )


@pytest.mark.parametrize("name", ["swin_t", "volo_d1", "twins_svt_s"])
def test_the_parts_are_the_modules_of_a_network_and_its_head(name: str) -> None:
    architecture = preset(name)
    with torch.device("meta"):
        network = build_subnet(architecture)

    assert len(list(_modules_of(network))) + 1 == len(parts_of(architecture))


def test_measured_parts_make_the_networks() -> None:
    small = SearchSpace.of(SPACE.sample(random.Random(3)))

    table, checked = measure_table(
        small,
        device=torch.device("cpu"),
        deployment=Deployment(),
        whole=[small.first()],
        rng=random.Random(0),
    )

    assert set(table.parts) == set(parts_of(small.first()))
    assert all(
        0 < found.low_ms <= found.median_ms <= found.high_ms for found in table.parts.values()
    )
    assert checked[0].predicted_ms == table.predict(small.first())
    assert checked[0].measured.median_ms > 0


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table = table_of(SPACE)
    table.save(tmp_path / "table.json")

    assert LatencyTable.load(tmp_path / "table.json") == table


def test_other_networks_are_refused() -> None:
    table, architecture = table_of(SPACE), SPACE.first()
    with pytest.raises(ValueError, match=r"num_classes = \d+, got 7"):
        table.predict(architecture.replace(num_classes=7))

    block = next(part for part in parts_of(architecture) if part.mixer)
    fewer = {part: found for part, found in table.parts.items() if part != block}
    with pytest.raises(ValueError, match="does not cover 'stage0 even"):
        LatencyTable(**{**{n: getattr(table, n) for n in table.__slots__}, "parts": fewer}).predict(
            architecture
        )


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"parts": [{}]}', encoding="utf-8")

    with pytest.raises(ValueError, match="cannot be read as a latency table"):
        LatencyTable.load(tmp_path / "a.json")


def test_the_interval_of_a_median_is_that_of_the_order_statistics() -> None:
    # Tables of the sign test: 30 values, the 10th to the 21st; 50 values, the 18th to the 33rd.
    assert median_interval(range(1, 31)) == (10, 21)
    assert median_interval(range(1, 51)) == (18, 33)
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_a_part_names_what_it_is() -> None:
    parts = parts_of(preset("swin_t"))

    assert [str(part) for part in parts[:3]] == [
        "stem c96",
        "stage0 even win7 h3 m4 c96",
        "stage0 odd win7 h3 m4 c96",
    ]
    assert str(Part("join1", (96, 192))) == "join1 c96-192"
    assert str(Part("head", (768,), None, 4.0)) == "head m4 c768"
