"""Networks as backbones: a ranking counts each network once, by accuracies of one fidelity."""

from __future__ import annotations

from scipy.stats import kendalltau

from search.record import Measured
from search.report.backbones import Backbone, backbones_content
from search.results import candidates
from search.results.candidates import Candidate
from tests.tiny_trials import trial


def backbone(number: int, miou: float, *, seed: int = 0) -> Backbone:
    measured = Measured(miou=miou, miou_low=miou - 5, miou_high=miou + 5)
    return Backbone(number=number, label="cells-2s", seed=seed, measured=measured, pictures=())


def accuracies(correct: dict[int, int], fidelity: str) -> tuple[Candidate, ...]:
    trials = [trial(n, correct=right, fidelity=fidelity) for n, right in correct.items()]
    return candidates(trials, fidelity=fidelity)


SEARCHED = accuracies({1: 100, 2: 110, 3: 130, 4: 120}, "train-3e")


def tau_of(found: list[Backbone], known: tuple[Candidate, ...]) -> str:
    content = backbones_content(found, known)
    assert content is not None
    (said,) = content["taus"]
    return str(said)


def test_a_network_with_several_seeds_is_one_point_at_their_mean() -> None:
    found = [backbone(1, 60, seed=0), backbone(1, 20, seed=1)]
    found += [backbone(2, 45), backbone(3, 50), backbone(4, 55)]

    said = tau_of(found, SEARCHED)

    # Of network 1 the mean is 40.
    expected = kendalltau([100, 110, 130, 120], [40, 45, 50, 55]).statistic
    assert f"{expected:.2f} over 4 networks" in said


def test_a_ranking_is_by_accuracies_of_one_fidelity() -> None:
    """Two of four were retrained, and are the more accurate for that alone."""
    found = [backbone(1, 40), backbone(2, 45), backbone(3, 55), backbone(4, 50)]
    final = accuracies({1: 190, 2: 195}, "retrain-micro-9e")

    content = backbones_content(found, [*SEARCHED, *final])

    assert content is not None
    (said,) = content["taus"]
    assert "top-1 (train-3e) against mIoU" in said
    assert "1.00 over 4 networks" in said
    # Beside a network stands its last accuracy, and of which training that is.
    assert [row[1].partition("(")[2] for row in content["rows"]] == [
        "retrain-micro-9e)",
        "retrain-micro-9e)",
        "train-3e)",
        "train-3e)",
    ]


def test_where_all_were_retrained_that_is_what_ranks_them() -> None:
    found = [backbone(1, 40), backbone(2, 45)]
    final = accuracies({1: 195, 2: 190}, "retrain-micro-9e")

    assert "top-1 (retrain-micro-9e) against mIoU of cells-2s: -1.00" in tau_of(
        found, (*SEARCHED, *final)
    )
