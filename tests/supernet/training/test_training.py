"""Laws of training: schedule, weight decay, averages, repeatability, resumption, what stops it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from configs import config_names
from search.results.intervals import wilson_interval
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, Elsa, NeighborhoodAttention
from supernet.data import ImageData
from supernet.network.supernet import build_subnet
from supernet.recipes.recipe import Recipe, load_recipe
from supernet.training import training
from supernet.training.batches import steps_per_epoch, train_batches
from supernet.training.calibration import calibration_images, recalibrate
from supernet.training.checkpoint import latest_checkpoint, write_checkpoint
from supernet.training.epoch_report import EpochReport
from supernet.training.evaluation import Accuracy
from supernet.training.optimization import build_optimizer, build_scheduler
from supernet.training.training import (
    METRICS_FILE,
    WEIGHTS_FILE,
    TrainingOptions,
    TrainingResult,
    TrainingStopped,
    evaluate,
    train,
)
from tests.tiny_data import PLAIN, changed, noise, tiny_data

QUICK = changed("quick", **PLAIN, batch_size=4, epochs=3)
FULL = changed("micro", batch_size=4, epochs=4, warmup_epochs=1, random_erasing=0.5)


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    return tiny_data(tmp_path, *noise(27, 9))


class Net(nn.Module):
    """Has what a training must handle: batch norm, dropout, biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(images)).relu().mean((2, 3))
        return self.head(self.dropout(x))


def new_net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def options(data: ImageData, **changes: object) -> TrainingOptions:
    plain = TrainingOptions(
        train_split=data.split("train"), eval_split=data.split("search"), seed=0
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_a_training_of_a_few_steps_can_be_judged_with_recalibrated_norms(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[dict[str, Tensor]] = []

    def look(network: nn.Module, *more: object, **named: object) -> Accuracy:
        judged.append({name: value.clone() for name, value in network.state_dict().items()})
        return Accuracy(0, 0, 1)

    monkeypatch.setattr(training, "evaluate", look)
    recipe = changed("quick", **PLAIN, batch_size=4, epochs=1, ema_decay=0.9)
    train(new_net(), data, recipe, options(data))
    train(new_net(), data, recipe, options(data, recalibrates=True, out=tmp_path))

    images = calibration_images(data, recipe.batch_size)
    for running, recalibrated in zip(judged[:2], judged[2:], strict=True):
        network = new_net()
        network.load_state_dict(running)
        recalibrate(network, images)
        assert not torch.allclose(running["norm.running_mean"], network.norm.running_mean)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(recalibrated[name], value)
    # What is kept has the statistics of the training.
    kept = load_file(latest_checkpoint(tmp_path) / WEIGHTS_FILE)
    assert torch.equal(kept["norm.running_mean"], judged[0]["norm.running_mean"])


@pytest.mark.parametrize("more", [-1, 0])
def test_a_training_of_enough_steps_keeps_its_running_statistics(
    data: ImageData, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    steps = steps_per_epoch(len(data.split("train")), changed("quick", **PLAIN, batch_size=4))
    monkeypatch.setattr(training, "ENOUGH_STEPS", 2 * steps - more)
    seen: list[nn.Module] = []
    monkeypatch.setattr(training, "recalibrate", lambda network, *_, **__: seen.append(network))
    recipe = changed("quick", **PLAIN, batch_size=4, epochs=2)
    train(new_net(), data, recipe, options(data, recalibrates=True))
    assert bool(seen) == (more < 0)


def assert_equal_states(one: nn.Module, two: nn.Module) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def losses(result: TrainingResult) -> list[float]:
    return [report.loss for report in result.history]


def published_lr(recipe: Recipe, step: int, steps: int) -> float:
    """Compute the rate of a step as the papers' code does (Swin lr_scheduler.py, timm 0.4)."""
    factor = recipe.batch_size / recipe.lr_base_batch if recipe.lr_base_batch else 1
    peak, start, end = recipe.lr * factor, recipe.warmup_lr, recipe.min_lr
    if recipe.lr_scaling == "linear":
        start, end = start * factor, end * factor
    epoch = step / steps if recipe.schedule == "step" else step // steps
    if epoch < recipe.warmup_epochs:
        return start + (peak - start) * epoch / recipe.warmup_epochs
    if epoch >= recipe.epochs:
        return end
    return end + (peak - end) * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2


@pytest.mark.parametrize("schedule", ["step", "epoch"])
@pytest.mark.parametrize("name", config_names("recipes"))
def test_learning_rates_are_the_published_ones(name: str, schedule: str) -> None:
    recipe = changed(name, schedule=schedule, cooldown_epochs=2)
    optimizer = build_optimizer(nn.Linear(2, 2), recipe)
    steps = 7
    scheduler = build_scheduler(optimizer, recipe, steps)

    for step in range(0, recipe.total_epochs * steps, 5):
        scheduler.step_update(step)
        scheduler.step(step // steps)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(published_lr(recipe, step, steps), rel=1e-9)


def test_a_training_runs_at_the_rates_of_its_schedule(data: ImageData) -> None:
    recipe = changed(QUICK, warmup_epochs=0.5, cooldown_epochs=1)

    result = train(new_net(), data, recipe, options(data))

    last_steps = [4 * epoch + 3 for epoch in range(4)]
    expected = [published_lr(recipe, step, 4) for step in last_steps]
    assert [report.lr for report in result.history] == pytest.approx(expected)
    assert [(r.epoch, r.epochs) for r in result.history] == [(e, 4) for e in (1, 2, 3, 4)]


def test_biases_and_one_dimensional_parameters_are_not_decayed() -> None:
    mixers = (
        DepthwiseConv(kernel_size=3),
        NeighborhoodAttention(kernel_size=3, num_heads=2),
        Elsa(kernel_size=3, num_heads=2, lam=1.0, gamma=1.0),
    )
    network = build_subnet(
        Architecture(img_size=8, patch_size=2, stages=(Stage(dim=8, mixers=mixers),))
    )
    decays = {
        id(parameter): group["weight_decay"]
        for group in build_optimizer(network, load_recipe("swin_300e")).param_groups
        for parameter in group["params"]
    }

    found = {name: decays.pop(id(value)) for name, value in network.named_parameters()}

    assert decays == {}
    for name, parameter in network.named_parameters():
        # All biases, those of relative positions among them, as in Swin.
        is_free = parameter.ndim == 1 or name.rpartition(".")[2].endswith("bias")
        assert found[name] == (0.0 if is_free else 0.05), name
    # The relative position bias and the ghost head, as Swin and ELSA have them.
    ends = {name.rpartition(".")[2]: decay for name, decay in found.items()}
    assert (ends["table_bias"], ends["mul"], ends["add"]) == (0.0, 0.05, 0.05)


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_the_loss_is_timms_smoothed_cross_entropy(data: ImageData, mixup: float) -> None:
    recipe = changed(
        QUICK, batch_size=64, epochs=1, label_smoothing=0.1, mixup=mixup, mixup_prob=1.0
    )
    network = new_net().eval()
    network.dropout.p = 0.0
    split = data.split("train")
    ((images, targets),) = train_batches(split, data, recipe, epoch=0, seed=0)
    logits = new_net().train().requires_grad_(False)
    logits.dropout.p = 0.0
    criterion = LabelSmoothingCrossEntropy(0.1)
    if mixup:
        # timm smooths the target when it mixes.
        criterion, targets = SoftTargetCrossEntropy(), targets * 0.9 + 0.1 / 2
    expected = criterion(logits(images), targets)

    result = train(network, data, recipe, options(data))

    assert losses(result) == pytest.approx([expected.item()], rel=1e-6)


@pytest.mark.parametrize("recipe", [QUICK, FULL])
def test_the_same_seed_gives_the_same_network(data: ImageData, recipe: Recipe) -> None:
    networks = [new_net() for _ in range(3)]
    results = [
        train(network, data, recipe, options(data, seed=seed))
        for network, seed in zip(networks, (0, 0, 1), strict=True)
    ]

    assert_equal_states(networks[0], networks[1])
    assert losses(results[0]) == losses(results[1])
    assert not torch.equal(networks[0].conv.weight, networks[2].conv.weight)


def test_training_leaves_the_callers_random_numbers_alone(data: ImageData) -> None:
    before = torch.get_rng_state()

    train(new_net(), data, FULL, options(data))

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("changes", [{}, {"amp": "bf16"}, {"channels_last": True}])
@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_a_resumed_training_equals_the_undisturbed_one_to_the_last_bit(
    data: ImageData, tmp_path: Path, stop_after: int, changes: dict[str, object]
) -> None:
    recipe = changed(FULL, **changes)
    undisturbed = new_net()
    expected = train(undisturbed, data, recipe, options(data))
    out = tmp_path / "out"
    seen: list[EpochReport] = []
    stopped = options(
        data, out=out, on_epoch=seen.append, should_stop=lambda: len(seen) == stop_after
    )

    with pytest.raises(TrainingStopped, match=f"after {stop_after} of 4 epochs"):
        train(new_net(), data, recipe, stopped)
    # Another start: what counts is the checkpoint.
    network = new_net(seed=1 if stop_after else 0)
    result = train(network, data, recipe, options(data, out=out, on_epoch=seen.append))

    assert_equal_states(network, undisturbed)
    assert result.ema_network is not None
    assert expected.ema_network is not None
    assert_equal_states(result.ema_network, expected.ema_network)
    assert losses(result) == losses(expected)
    assert (result.raw, result.ema) == (expected.raw, expected.ema)
    assert [report.epoch for report in seen] == [1, 2, 3, 4]
    rows = (out / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0].startswith("epoch,epochs,seconds,loss,lr,images,")
    assert [float(row.split(",")[3]) for row in rows[1:]] == losses(expected)


def test_a_finished_training_is_judged_again_and_not_trained(
    data: ImageData, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    expected = train(new_net(), data, QUICK, options(data, out=out))
    seen: list[EpochReport] = []

    result = train(new_net(), data, QUICK, options(data, out=out, on_epoch=seen.append))

    assert seen == []
    assert result == expected


def test_a_training_killed_behind_its_last_checkpoint_has_all_rows_of_its_table(
    data: ImageData, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    train(new_net(), data, QUICK, options(data, out=out))
    table = out / METRICS_FILE
    whole = table.read_text()
    table.write_text("".join(whole.splitlines(keepends=True)[:-1]))

    train(new_net(), data, QUICK, options(data, out=out))

    assert table.read_text() == whole


@pytest.mark.parametrize(
    ("recipe", "seed"), [(changed(QUICK, lr=0.001), 0), (changed(QUICK, epochs=4), 0), (QUICK, 1)]
)
def test_a_checkpoint_of_another_training_is_refused(
    data: ImageData, tmp_path: Path, recipe: Recipe, seed: int
) -> None:
    out = tmp_path / "out"
    train(new_net(), data, QUICK, options(data, out=out))

    with pytest.raises(ValueError, match="Choose another folder"):
        train(new_net(), data, recipe, options(data, out=out, seed=seed))


def write_number(number: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "number").write_text(str(number))

    return write


def fail_half_way(folder: Path) -> None:
    (folder / "number").write_text("half")
    raise OSError("disk full")


def test_a_failure_between_writes_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 9, write_number(9))

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, 10, fail_half_way)

    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found / "number").read_text() == "9"


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    write_checkpoint(tmp_path, 9, write_number(9))
    # As if the process had died before it removed this one, and while it wrote the next.
    shutil.copytree(tmp_path / "checkpoint-00009", tmp_path / "checkpoint-00008")
    (tmp_path / "checkpoint-00010.partial").mkdir()
    (tmp_path / "checkpoint-00010.partial" / "old").touch()

    write_checkpoint(tmp_path, 10, write_number(10))

    (only,) = tmp_path.iterdir()
    assert only == latest_checkpoint(tmp_path)
    assert {path.name for path in only.iterdir()} == {"number", "checksums.json"}


def test_a_loss_that_is_not_finite_stops_with_its_place(data: ImageData, tmp_path: Path) -> None:
    network = new_net()
    recipe = changed(QUICK, warmup_epochs=0, warmup_lr=0.0, min_lr=0.0)

    def spoil(report: EpochReport) -> None:
        if report.epoch == 2:
            nn.init.constant_(network.head.weight, float("nan"))

    with pytest.raises(FloatingPointError) as caught:
        train(network, data, recipe, options(data, out=tmp_path / "out", on_epoch=spoil))

    lr = 0.002 * (1 + math.cos(math.pi * 2 / 3)) / 2
    expected = f"The loss is nan in epoch 3 of 3, step 1 of 4, at learning rate {lr:.3g}. "
    assert str(caught.value).startswith(expected)


def test_averages_cover_weights_and_batch_norm_statistics_alike(data: ImageData) -> None:
    network = new_net()
    recipe = changed(QUICK, batch_size=64, ema_decay=0.6, lr=0.1)
    states: list[dict[str, Tensor]] = []

    def keep(_: EpochReport) -> None:
        state = network.state_dict()
        states.append({name: value.clone().float() for name, value in state.items()})

    result = train(network, data, recipe, options(data, on_epoch=keep))

    assert result.ema_network is not None
    averaged = result.ema_network.state_dict()
    for name in ("conv.weight", "head.bias", "norm.running_mean", "norm.running_var"):
        # One step an epoch; the first step's weights are where the average starts.
        expected = 0.36 * states[0][name] + 0.24 * states[1][name] + 0.4 * states[2][name]
        torch.testing.assert_close(averaged[name], expected)
    assert result.accuracy == result.ema


def test_gradients_are_clipped_to_the_norm_of_the_recipe(data: ImageData) -> None:
    # With betas of 0, AdamW divides each gradient by its own size, unless it is far below eps.
    recipe = changed(QUICK, batch_size=64, epochs=1, warmup_epochs=0, betas=[0.0, 0.0])
    recipe = changed(recipe, weight_decay=0.0, lr=0.01, warmup_lr=0.0, min_lr=0.0)
    moved = {}
    for clip_grad in (None, 1e-12):
        network = new_net()
        train(network, data, changed(recipe, clip_grad=clip_grad), options(data))
        change = (network.conv.weight - new_net().conv.weight).detach()
        moved[clip_grad] = float(change.abs().max())

    assert moved[None] == pytest.approx(0.01, rel=1e-3)
    assert moved[1e-12] < 1e-5


def test_what_can_be_learnt_is_learnt(tmp_path: Path) -> None:
    images, labels = noise(40, 9)
    images = images // 2 + (labels[:, None, None, None] * 128).astype(images.dtype)
    data = tiny_data(tmp_path, images, labels, num_search=8)
    recipe = changed(QUICK, epochs=8, lr=0.03, ema_decay=0.9, ema_warmup=True)

    result = train(new_net(), data, recipe, options(data))

    assert result.raw.top1 == result.raw.top5 == 100.0
    assert result.ema == result.raw
    assert result.raw.total == 8
    assert losses(result)[-1] < losses(result)[0] / 2


class Echo(nn.Module):
    """Returns its input as logits."""

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return x


def test_accuracy_counts_images_and_a_logit_that_is_not_finite_is_wrong() -> None:
    logits = torch.tensor(
        [[9.0, 1, 2, 3, 4, 5], [1, 9, 2, 3, 4, 5], [9, 8, 7, 6, 5, 4], [9, 0, 0, 0, 0, math.nan]]
    )
    network = Echo().train()

    accuracy = evaluate(network, [(logits, torch.tensor([0, 0, 5, 0]))], "cpu")

    # The class of the second and of the third has the smallest of six logits.
    assert (accuracy.correct, accuracy.correct_top5, accuracy.total) == (1, 1, 4)
    assert (accuracy.top1, accuracy.top5) == (25.0, 25.0)
    # The labels of the six images are of the largest logit, the second largest, ... the sixth.
    ranked = torch.arange(6.0).flip(0).expand(6, 6)
    accuracy = evaluate(network, [(ranked, torch.arange(6))], "cpu")
    assert (accuracy.correct, accuracy.correct_top5, accuracy.total) == (1, 5, 6)
    assert network.training


def test_an_accuracy_of_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        evaluate(Echo(), [], "cpu")


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (7, 7), (345, 359), (1, 2)])
def test_the_interval_ends_where_the_share_would_be_1_96_deviations_off(
    correct: int, total: int
) -> None:
    share = correct / total

    low, high = (bound / 100 for bound in wilson_interval(correct, total))

    assert 0 <= low <= share <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        deviation = math.sqrt(bound * (1 - bound) / total)
        assert abs(share - bound) == pytest.approx(1.959964 * deviation, rel=1e-5)
