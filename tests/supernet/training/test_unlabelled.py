"""Images without classes: they learn from the teacher alone, by the definition of the loss."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from search.retraining.network import RetrainOptions, retrain
from supernet.data import ImageData, Split, prepare_unlabelled
from supernet.network.supernet import build_subnet
from supernet.training.batches import train_shards
from supernet.training.finishing import Mixing
from supernet.training.training import TrainingOptions, train
from supernet.training.training_step import labelled_loss
from tests.supernet.training.test_distillation import ARCHITECTURE, RECIPE, Once, equal
from tests.tiny_data import changed, noise, tiny_data, write_images
from tests.tiny_teachers import tiny_teacher


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    (tmp_path / "data").mkdir()
    return tiny_data(tmp_path / "data", *noise(44, 8))


def recipe_with(weight: float, **more: object):  # type: ignore[no-untyped-def]
    settings = {"weight": weight, "temperature": 2.0}
    return changed(RECIPE, distillation=settings, **more)


def without(split: Split, keep: int, *, labels: int = -1) -> Split:
    """Return a split of which all images but the first have no class (or another one)."""
    found = split.labels.copy()
    found[keep:] = labels
    return Split(split.images, found)


def trained(data: ImageData, split: Split, weight: float, **more: object) -> nn.Module:
    torch.manual_seed(0)
    network = build_subnet(ARCHITECTURE)
    options = TrainingOptions(
        train_split=split, eval_split=data.test_split(), seed=1, teacher=tiny_teacher()
    )
    train(network, data, recipe_with(weight, **more), options)
    return network


def test_the_loss_on_labels_is_the_mean_over_the_images_that_have_one() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 3, dtype=torch.float64)
    log_q = logits.log_softmax(1)
    for smoothing in (0.0, 0.2):
        found = labelled_loss(logits, torch.tensor([2, -1, 0, -1]), smoothing, 0.5)
        expected = 0.0
        for row, label in ((0, 2), (2, 0)):
            target = [smoothing / 3] * 3
            target[label] += 1 - smoothing
            expected -= sum(t * float(log_q[row, k]) for k, t in enumerate(target)) / 2
        assert float(found) == pytest.approx(expected)
        assert float(labelled_loss(logits, torch.full((4,), -1), smoothing, 0.0)) == 0.0
        known = torch.tensor([2, 1, 0, 1])
        plain = F.cross_entropy(logits, known, label_smoothing=smoothing)
        torch.testing.assert_close(labelled_loss(logits, known, smoothing, 1.0), plain)


@pytest.mark.parametrize("more", [{}, {"mixup": 0.8, "mixup_prob": 1.0}])
def test_it_is_the_same_mean_however_a_step_is_split(
    data: ImageData, more: dict[str, float]
) -> None:
    """A shard with one image that has a class does not weigh as much as one with three."""
    recipe = recipe_with(0.5, shard_size=2, label_smoothing=0.1, **more)
    split = without(data.full_train(), keep=9)
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)).requires_grad_(False)
    for shards in train_shards(split, data, recipe, epoch=0, seed=1):
        count = sum(int((shard.labels >= 0).sum()) for shard in shards)
        expected, found = 0.0, 0.0
        for shard in shards:
            images, targets = shard.finished()
            log_q = head(images).log_softmax(1)
            probabilities = targets
            if targets.ndim == 1:
                known = (targets >= 0).unsqueeze(1)
                probabilities = F.one_hot(targets.clamp_min(0), 2) * known
            smooth = 0.9 * probabilities + 0.05 * probabilities.sum(1, keepdim=True)
            expected -= float((smooth * log_q).sum()) / max(count, 1)
            loss = labelled_loss(head(images), targets, 0.1, shard.labelled)
            found += float(loss) * shard.share
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_images_count_by_the_share_that_has_a_class(smoothing: float) -> None:
    """Of four images two have a class; mixed in reverse order they are .7 and .3 of each pair."""
    torch.manual_seed(0)
    mixing = Mixing(0.7, None, 3)
    _, targets = mixing(torch.zeros(4, 3, 2, 2), torch.tensor([2, -1, 0, -1]))
    expected = torch.zeros(4, 3)
    expected[0, 2] = 0.7  # and .3 of the last, which has none
    expected[1, 0] = 0.3
    expected[2, 0] = 0.7
    expected[3, 2] = 0.3
    torch.testing.assert_close(targets, expected)
    logits = torch.randn(4, 3)
    log_q = logits.log_softmax(1)
    total = 0.0
    for row, label, share in ((0, 2, 0.7), (1, 0, 0.3), (2, 0, 0.7), (3, 2, 0.3)):
        target = [smoothing / 3] * 3
        target[label] += 1 - smoothing
        total -= share * sum(t * float(log_q[row, k]) for k, t in enumerate(target))
    found = labelled_loss(logits, targets, smoothing, 0.5)
    assert float(found) == pytest.approx(total / 2.0, rel=1e-5)
    assert float(labelled_loss(logits, torch.zeros(4, 3), smoothing, 0.0)) == 0.0


@pytest.mark.parametrize("more", [{}, {"mixup": 0.8, "mixup_prob": 1.0}])
def test_where_labels_count_for_nothing_it_is_all_one_whether_there_are_any(
    data: ImageData, more: dict[str, float]
) -> None:
    whole = data.full_train()
    assert equal(
        trained(data, whole, 1.0, **more), trained(data, without(whole, keep=9), 1.0, **more)
    )


@pytest.mark.parametrize("more", [{}, {"mixup": 0.8, "mixup_prob": 1.0, "label_smoothing": 0.1}])
def test_images_without_a_class_are_learned_from(data: ImageData, more: dict[str, float]) -> None:
    """Other pixels there give other weights, and everything stays finite."""
    split = without(data.full_train(), keep=9)
    first = trained(data, split, 0.5, **more)
    assert all(value.isfinite().all() for value in first.state_dict().values())
    images = np.array(split.images)
    images[9:] = 255 - images[9:]
    assert not equal(first, trained(data, Split(images, split.labels), 0.5, **more))
    wrong = without(data.full_train(), keep=9, labels=0)
    assert not equal(first, trained(data, wrong, 0.5, **more))


def test_without_a_teacher_there_is_nothing_to_learn_on_them(data: ImageData) -> None:
    split = without(data.full_train(), keep=9)
    options = TrainingOptions(train_split=split, eval_split=data.test_split(), seed=1)
    with pytest.raises(ValueError, match=r"Add --teacher, or leave --unlabelled out"):
        train(build_subnet(ARCHITECTURE), data, recipe_with(0.5), options)
    with pytest.raises(ValueError, match="The teacher counts for nothing"):
        trained(data, split, 0.0)


def test_retraining_on_them_is_another_training_and_says_so(
    data: ImageData, tmp_path: Path
) -> None:
    write_images(tmp_path / "more", *noise(12, 8), num_test=1)
    more = prepare_unlabelled(tmp_path / "more", data, tmp_path)
    recipe = recipe_with(0.5)
    plain = retrain(
        ARCHITECTURE, data, recipe, RetrainOptions(out=tmp_path / "plain", teacher=tiny_teacher())
    )
    out = tmp_path / "out"
    options = RetrainOptions(out=out, teacher=tiny_teacher(), unlabelled=more)
    found = retrain(ARCHITECTURE, data, recipe, options)
    assert (plain.num_unlabelled, found.num_unlabelled) == (0, more.count) == (0, 12)
    assert found.num_train_images == plain.num_train_images == len(data.full_train())
    assert plain.identity != found.identity
    assert "taught by `a teacher`, also on 12 images without classes" in (
        out / "README.md"
    ).read_text("utf-8")
    # An epoch has all of them: 40 and 12 images, in batches of 8.
    lines = (out / "metrics.csv").read_text("utf-8").splitlines()
    names = lines[0].split(",")
    assert float(lines[1].split(",")[names.index("images")]) == 8 * math.floor(52 / 8)
    with pytest.raises(ValueError, match="Add --teacher"):
        retrain(ARCHITECTURE, data, recipe, RetrainOptions(out=tmp_path / "x", unlabelled=more))
    assert not (tmp_path / "x").exists()


def test_a_training_on_them_goes_on_as_if_it_had_not_stopped(
    data: ImageData, tmp_path: Path
) -> None:
    from supernet.training import TrainingStopped

    write_images(tmp_path / "more", *noise(12, 8), num_test=1)
    more = prepare_unlabelled(tmp_path / "more", data, tmp_path)

    def run(name: str, **stop: object) -> Path:
        out = tmp_path / name
        options = RetrainOptions(out=out, teacher=tiny_teacher(), unlabelled=more, **stop)  # type: ignore[arg-type]
        retrain(ARCHITECTURE, data, recipe_with(0.5), options)
        return out / "model.safetensors"

    whole = run("whole").read_bytes()
    with pytest.raises(TrainingStopped):
        run("parts", should_stop=Once())
    assert run("parts").read_bytes() == whole
