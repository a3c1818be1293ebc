"""What `search eval` measures of a retrained network: counts by hand, times by a test's clock."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from search.results.intervals import wilson_interval
from search.retraining import evaluate as evaluation
from search.retraining.evaluate import BATCH_SIZE, evaluate_retrained, evaluation_table
from search.retraining.finished import find_retrained
from search.retraining.network import RetrainOptions, retrain
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, WindowAttention
from supernet.data import ImageData, prepare_data
from supernet.training.batches import eval_batches
from tests.tiny_data import changed, noise, write_images

MIXERS = (DepthwiseConv(kernel_size=3), WindowAttention(window_size=2, num_heads=2))
ARCHITECTURE = Architecture(
    img_size=8, patch_size=2, num_classes=7, stages=(Stage(dim=8, mixers=MIXERS),)
)
RECIPE = changed("micro", epochs=1, warmup_epochs=0, batch_size=8)
NUM_TEST = 30


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    source = write_images(tmp_path / "images", *noise(90, 8, num_classes=7), num_test=NUM_TEST)
    return prepare_data(source, img_size=8, folder=tmp_path / "run" / "data")


@pytest.fixture
def out(data: ImageData, tmp_path: Path) -> Path:
    """A retraining in the folder of a run."""
    out = tmp_path / "run" / "retrain" / "1-micro-1e-s0"
    retrain(ARCHITECTURE, data, RECIPE, RetrainOptions(out=out))
    return out


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Let a pass take 2 ms an image, and what is timed be seen."""
    seen: list[tuple[int, ...]] = []

    def time_runs(network: nn.Module, images: Tensor, **_: object) -> list[float]:
        seen.append(tuple(images.shape))
        return [len(images) * 0.002 * factor for factor in [0.5] * 9 + [1.0] * 12 + [3.0] * 9]

    monkeypatch.setattr(evaluation, "time_runs", time_runs)
    return seen


def logits_of(out: Path, data: ImageData) -> tuple[Tensor, Tensor]:
    """Run the network that counts on each test image alone."""
    network = find_retrained(str(out)).network().eval()
    images, labels = zip(*eval_batches(data.test_split(), data, 1), strict=True)
    with torch.no_grad():
        return torch.cat([network(image) for image in images]), torch.cat(labels)


def test_the_accuracy_is_counted_image_by_image(
    out: Path, data: ImageData, tmp_path: Path, timed: list[tuple[int, ...]]
) -> None:
    found = evaluate_retrained(
        str(out), data=None, real_labels=None, device="cpu", folder=tmp_path / "none"
    )

    logits, labels = logits_of(out, data)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert found.accuracy.total == NUM_TEST
    assert found.accuracy.correct == int((ranks < 1).sum())
    assert found.accuracy.correct_top5 == int((ranks < 5).sum())
    # Of seven classes, four and five differ for some image.
    assert int((ranks < 4).sum()) < int((ranks < 5).sum())
    assert found.real is None


def test_throughput_and_latency_are_medians(
    out: Path, tmp_path: Path, timed: list[tuple[int, ...]]
) -> None:
    found = evaluate_retrained(
        str(out), data=None, real_labels=None, device="cpu", folder=tmp_path / "none"
    )

    assert timed == [(BATCH_SIZE, 3, 8, 8), (1, 3, 8, 8)]
    assert found.images_per_second == pytest.approx(1 / 0.002)
    assert found.latency_ms == pytest.approx(2.0)
    low, high = found.latency_interval_ms
    assert low <= 2.0 <= high
    assert (found.batch_size, found.device) == (BATCH_SIZE, "cpu")
    assert json.loads(json.dumps(found.to_json()))


def test_the_table_names_every_number(
    out: Path, tmp_path: Path, timed: list[tuple[int, ...]]
) -> None:
    found = evaluate_retrained(
        str(out), data=None, real_labels=None, device="cpu", folder=tmp_path / "none"
    )

    table = evaluation_table(found)
    assert not table.show_header
    names, values = (list(column.cells) for column in table.columns)

    low, high = wilson_interval(found.accuracy.correct, NUM_TEST)
    where = f"cpu, {torch.get_num_threads()} thread(s)"
    assert dict(zip(names, values, strict=True)) == {
        "top-1": f"{found.accuracy.top1:.2f} % (95 % interval {low:.2f} to {high:.2f})",
        "top-5": f"{found.accuracy.top5:.2f} %",
        "images": "30",
        "throughput": f"500 images/s in batches of {BATCH_SIZE}, {where}",
        "latency": "2.00 ms an image (95 % interval {:.2f} to {:.2f}), {}".format(
            *found.latency_interval_ms, where
        ),
    }


def test_images_of_other_classes_are_refused(out: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the classes of digits are others"):
        evaluate_retrained(
            str(out), data="digits", real_labels=None, device="cpu", folder=tmp_path / "digits"
        )
    # That was known before any of them was decoded.
    assert not (tmp_path / "digits").exists()


def test_a_folder_without_its_run_needs_images(out: Path, data: ImageData, tmp_path: Path) -> None:
    (tmp_path / "run" / "data" / "data.json").unlink()
    with pytest.raises(ValueError, match="does not lie in a run that has its images"):
        evaluate_retrained(
            str(out), data=None, real_labels=None, device="cpu", folder=tmp_path / "none"
        )


def test_real_labels_belong_to_files_of_imagenet(out: Path, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("[]")
    with pytest.raises(ValueError, match=r"belong to the file names.*Give ImageNet with --data"):
        evaluate_retrained(
            str(out),
            data=None,
            real_labels=tmp_path / "real.json",
            device="cpu",
            folder=tmp_path / "none",
        )


@pytest.mark.parametrize(
    ("named", "count", "words"),
    [
        ("photo_{:08d}.JPEG", 30, r"one here is called test/class\d/photo_0000"),
        ("ILSVRC2012_val_{:08d}.png", 30, r"one here is called test/class\d/ILSVRC2012_val_0"),
        ("ILSVRC2012_val_{:08d}.JPEG", 29, "it has a label for each of the images"),
        ("ILSVRC2012_val_{:08d}.JPEG", 30, ""),
    ],
)
def test_real_labels_are_found_by_the_names_of_the_images(
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: str,
    count: int,
    words: str,
) -> None:
    test = tmp_path / "images" / "test"
    for number, image in enumerate(sorted(test.glob("*/*"))):
        image.rename(image.with_name(named.format(number + 1)))
    (tmp_path / "real.json").write_text(json.dumps([[3]] * count))
    streamed = partial(prepare_data, memory_limit_bytes=1)
    monkeypatch.setattr(evaluation, "prepare_data", streamed)

    def judged() -> float | None:
        return evaluate_retrained(
            str(out),
            data=str(tmp_path / "images"),
            real_labels=tmp_path / "real.json",
            device="cpu",
            folder=tmp_path / "other",
        ).real

    if words:
        with pytest.raises(ValueError, match=words):
            judged()
    else:
        assert judged() is not None
