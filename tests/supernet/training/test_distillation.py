"""Laws of learning from a teacher: the loss by its definition, what it sees, who it may be."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from search.retraining.network import RetrainOptions, retrain
from search.retraining.teachers import find_teacher
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, WindowAttention
from searchspace.presets import preset
from supernet.data import ImageData
from supernet.network.supernet import build_subnet
from supernet.recipes.recipe import Distillation
from supernet.training.distillation import (
    Lesson,
    Teacher,
    similarity_distance,
    token_distance,
)
from supernet.training.distillation import Seen as Noted
from supernet.training.training import TrainingOptions, TrainingStopped, train
from tests.tiny_data import PLAIN, changed, noise, tiny_data

RECIPE = changed("quick", **PLAIN, batch_size=8, epochs=2)
MIXERS = (DepthwiseConv(kernel_size=3), WindowAttention(window_size=2, num_heads=2))
ARCHITECTURE = Architecture(
    img_size=8, patch_size=2, num_classes=2, stages=(Stage(dim=8, mixers=MIXERS),)
)
OTHER = ARCHITECTURE.replace(stages=(Stage(dim=4, mixers=MIXERS[:1]),))


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    (tmp_path / "data").mkdir()
    return tiny_data(tmp_path / "data", *noise(28, 8))


def teacher(network: nn.Module | None = None, **changes: object) -> Teacher:
    torch.manual_seed(7)
    plain = Teacher(
        network=(network or build_subnet(OTHER)).eval(),
        name="a teacher",
        img_size=8,
        num_classes=2,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.5),
        fingerprint="one",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def recipe_with(weight: float, temperature: float = 3.0):  # type: ignore[no-untyped-def]
    return changed(RECIPE, distillation={"weight": weight, "temperature": temperature})


def trained(data: ImageData, weight: float, taught_by: Teacher | None, **more: object) -> nn.Module:
    torch.manual_seed(0)
    network = build_subnet(ARCHITECTURE)
    options = TrainingOptions(
        train_split=data.full_train(),
        eval_split=data.test_split(),
        seed=1,
        teacher=taught_by,
        **more,  # type: ignore[arg-type]
    )
    train(network, data, recipe_with(weight), options)
    return network


def equal(one: nn.Module, two: nn.Module) -> bool:
    states = one.state_dict(), two.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_loss_is_that_of_the_papers() -> None:
    torch.manual_seed(0)
    student, taught = torch.randn(2, 5, 7, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4])
    task = nn.functional.cross_entropy(student, labels)
    for weight, temperature in ((0.1, 3.0), (0.9, 1.0), (1.0, 4.0)):
        expected = 0.0
        for n in range(5):
            p = torch.exp(taught[n] / temperature)
            p = p / p.sum()
            q = torch.exp(student[n] / temperature)
            q = q / q.sum()
            divergence = sum(
                float(a * (torch.log(a) - torch.log(b))) for a, b in zip(p, q, strict=True)
            )
            own = -float(student[n, labels[n]] - torch.log(torch.exp(student[n]).sum()))
            expected += ((1 - weight) * own + weight * temperature**2 * divergence) / 5
        settings = Distillation(weight=weight, temperature=temperature)
        lesson = Lesson(teacher(), settings, (0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
        assert float(lesson.loss(student, taught, task)) == pytest.approx(expected, rel=1e-10)


class Seen(nn.Module):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.images.append(images)
        return images.mean((2, 3))[:, :2]


def test_a_teacher_sees_the_same_images_as_it_was_trained_to_see_them() -> None:
    seen = Seen()
    raw = torch.rand(3, 3, 8, 8)
    mine, its = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.5)), ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1))

    def normalised(images: Tensor, to: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in to)
        return (images - mean) / std

    for size in (8, 16):
        who = teacher(seen, mean=its[0], std=its[1], img_size=size)
        settings = Distillation(weight=0.5, temperature=1.0)
        Lesson(who, settings, *mine, torch.device("cpu")).logits(normalised(raw, mine))
    same, larger = seen.images
    torch.testing.assert_close(same, normalised(raw, its), rtol=1e-4, atol=1e-5)
    assert larger.shape == (3, 3, 16, 16)
    torch.testing.assert_close(
        larger.mean((2, 3)), normalised(raw, its).mean((2, 3)), rtol=0.1, atol=0.1
    )


def test_a_teacher_that_counts_for_nothing_changes_nothing(data: ImageData) -> None:
    assert equal(trained(data, 0.0, teacher()), trained(data, 0.0, None))
    assert not equal(trained(data, 0.5, teacher()), trained(data, 0.5, None))


def test_with_the_teacher_alone_labels_play_no_part(data: ImageData, tmp_path: Path) -> None:
    images, labels = noise(28, 8)
    (tmp_path / "wrong").mkdir()
    wrong = tiny_data(tmp_path / "wrong", images, 1 - labels)
    assert equal(trained(data, 1.0, teacher()), trained(wrong, 1.0, teacher()))


def test_a_teacher_learns_nothing(data: ImageData) -> None:
    who = teacher(timm.create_model("resnet10t", num_classes=2), img_size=32)
    before = copy.deepcopy(who.network.state_dict())
    trained(data, 0.5, who)
    assert not who.network.training
    assert all(torch.equal(before[name], value) for name, value in who.network.state_dict().items())


def test_a_taught_training_goes_on_as_if_it_had_not_stopped(
    data: ImageData, tmp_path: Path
) -> None:
    whole = trained(data, 0.5, teacher(), out=tmp_path / "whole")
    with pytest.raises(TrainingStopped):
        trained(data, 0.5, teacher(), out=tmp_path / "two", should_stop=Once())
    with pytest.raises(ValueError, match="that it began with"):
        trained(data, 0.5, teacher(fingerprint="two"), out=tmp_path / "two")
    assert equal(trained(data, 0.5, teacher(), out=tmp_path / "two"), whole)


class Once:
    """Stops a training after its first epoch."""

    asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked == 2


def test_retraining_tells_the_teacher_and_is_another_training(
    data: ImageData, tmp_path: Path
) -> None:
    recipe = recipe_with(0.3)
    plain = retrain(ARCHITECTURE, data, recipe, RetrainOptions(out=tmp_path / "plain"))
    taught = retrain(
        ARCHITECTURE, data, recipe, RetrainOptions(out=tmp_path / "taught", teacher=teacher())
    )
    same = changed(recipe, distillation={"weight": 0.9, "temperature": 1.0})
    again = retrain(ARCHITECTURE, data, same, RetrainOptions(out=tmp_path / "again"))

    assert (plain.teacher, taught.teacher) == ("", "a teacher")
    assert "taught by `a teacher`" in (tmp_path / "taught" / "README.md").read_text()
    assert "taught" not in (tmp_path / "plain" / "README.md").read_text()
    found = RetrainOptions(out=tmp_path / "found", search_teacher="another")
    assert retrain(ARCHITECTURE, data, recipe, found).search_teacher == "another"
    card = (tmp_path / "found" / "README.md").read_text()
    assert "| found by | a search whose trainings were taught by `another` |\n| trained on" in card
    # How to learn from a teacher decides nothing where there is none.
    assert plain.identity == again.identity != taught.identity

    found = find_teacher(str(tmp_path / "taught"), data)
    assert (found.img_size, found.num_classes, found.mean) == (8, 2, data.mean)
    (tmp_path / "more").mkdir()
    other = tiny_data(tmp_path / "more", *noise(28, 8, num_classes=3))
    with pytest.raises(ValueError, match="learnt other classes"):
        find_teacher(str(tmp_path / "taught"), other)


def test_teachers_are_timms_networks_and_presets_with_files(
    data: ImageData, tmp_path: Path
) -> None:
    resnet = timm.create_model("resnet10t", num_classes=2)
    save_file(resnet.state_dict(), tmp_path / "r.safetensors")
    found = find_teacher(f"timm:resnet10t:{tmp_path}/r.safetensors", data)
    assert (found.img_size, found.num_classes) == (176, 2)  # timm's configuration
    assert torch.equal(found.network.fc.weight, resnet.fc.weight)  # type: ignore[union-attr]

    elsa = build_subnet(preset("dwconv_t").replace(num_classes=2))
    save_file(elsa.state_dict(), tmp_path / "d.safetensors")
    named = find_teacher(f"dwconv_t:{tmp_path}/d.safetensors", data)
    assert (named.img_size, named.mean) == (224, (0.485, 0.456, 0.406))

    for text, why in (
        (f"timm:resnet10t:{tmp_path}/none.pth", "there is no file"),
        (f"timm:resnet10t:{tmp_path}/d.safetensors", "does not fit"),
        ("timm:resnet9000", "knows no model"),
        (f"dwconv_t:{tmp_path}/r.safetensors", "does not fit"),
        ("dwconv_t:", "there is no file"),
        ("nobody", "neither RUN:ID nor the folder"),
    ):
        with pytest.raises(ValueError, match=why):
            find_teacher(text, data)


def test_weights_that_cannot_be_had_are_one_message(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> nn.Module:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr("search.retraining.teachers.timm.create_model", offline)
    with pytest.raises(ValueError, match=r"cannot be had \(no route to host\). Name a file"):
        find_teacher("timm:resnet18", data)


def test_a_teacher_needs_a_recipe_that_says_what_it_counts_for(
    data: ImageData, tmp_path: Path
) -> None:
    silent = changed(RECIPE, distillation=None)
    with pytest.raises(ValueError, match="has no distillation"):
        retrain(ARCHITECTURE, data, silent, RetrainOptions(out=tmp_path / "x", teacher=teacher()))
    assert not (tmp_path / "x").exists()


def test_tokens_and_features_are_those_of_the_definitions() -> None:
    torch.manual_seed(0)
    mine, theirs = ([torch.randn(2, 3, 3, 4), torch.randn(2, 1, 1, 6)] for _ in range(2))
    distances = []
    for a, b in zip(mine, theirs, strict=True):
        pairs = zip(a.flatten(0, 2), b.flatten(0, 2), strict=True)
        cosines = [float(x @ y / (x.norm() * y.norm())) for x, y in pairs]
        distances.append(1 - sum(cosines) / len(cosines))
    assert float(token_distance(mine, theirs)) == pytest.approx(sum(distances) / 2, abs=1e-6)
    with pytest.raises(ValueError, match=r"\(2, 1, 1, 6\).*features instead"):
        token_distance(mine, theirs[:1])

    one, two = torch.randn(5, 3), torch.randn(5, 8)
    expected = 0.0
    for row in range(5):
        a, b = (torch.stack([x[row] @ x[other] for other in range(5)]) for x in (one, two))
        expected += float(((a / a.norm() - b / b.norm()) ** 2).sum())
    assert float(similarity_distance(one, two)) == pytest.approx(expected / 25, abs=1e-6)


def test_labels_count_from_their_share_of_the_epochs_on() -> None:
    settings = Distillation(weight=0.5, temperature=1.0, tokens=2.0, labels_from=0.5)
    lesson = Lesson(teacher(), settings, (0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
    student, taught = torch.randn(2, 4, 3)
    maps = Noted(maps=[torch.randn(4, 2, 2, 8)]), Noted(maps=[torch.randn(4, 2, 2, 8)])
    task = torch.tensor(7.0)
    given = {"seen": maps[0], "taught": maps[1]}
    divergence = lesson.loss(student, taught, torch.tensor(0.0), progress=0.5) / 0.5
    before = lesson.loss(student, taught, task, **given, progress=0.49)
    after = lesson.loss(student, taught, task, **given, progress=0.5)
    distance = token_distance(maps[0].maps, maps[1].maps)
    torch.testing.assert_close(before, divergence + 2 * distance)
    torch.testing.assert_close(after, 0.5 * task + 0.5 * divergence)


@pytest.mark.parametrize("what", ["tokens", "features"])
def test_a_student_comes_nearer_to_what_it_learns(data: ImageData, what: str) -> None:
    """More of the loss on maps or features, less of their distance, with the labels left out."""

    def distance_of(amount: float) -> float:
        torch.manual_seed(0)
        network = build_subnet(ARCHITECTURE)
        settings = {"weight": 1.0, "temperature": 1.0, what: amount}
        one = teacher(build_subnet(ARCHITECTURE))
        recipe = changed(RECIPE, distillation=settings, epochs=40)
        options = TrainingOptions(
            train_split=data.full_train(), eval_split=data.test_split(), seed=1, teacher=one
        )
        train(network, data, recipe, options)
        asked = Distillation(**{**settings, what: 1.0})
        lesson = Lesson(one, asked, data.mean, data.std, torch.device("cpu"))
        images = torch.randn(6, 3, 8, 8)
        with torch.no_grad(), lesson.watching(network.eval()) as seen:
            network(images)
        with torch.no_grad():
            taught = lesson.teach(images)[1]
        if what == "tokens":
            return float(token_distance(seen.maps, taught.maps))
        return float(similarity_distance(seen.features[0], taught.features[0]))

    assert distance_of(30.0) < 0.8 * distance_of(0.0)


def test_what_cannot_be_learned_from_a_teacher_is_said(data: ImageData) -> None:
    torch.manual_seed(0)
    settings = {"weight": 0.5, "temperature": 1.0, "tokens": 1.0}
    options = TrainingOptions(
        train_split=data.full_train(), eval_split=data.test_split(), seed=1, teacher=teacher()
    )
    recipe = changed(RECIPE, distillation=settings)
    with pytest.raises(ValueError, match="maps have the student's shapes"):
        train(build_subnet(ARCHITECTURE), data, recipe, options)
    with pytest.raises(ValueError, match=r"compile: false"):
        train(build_subnet(ARCHITECTURE), data, changed(recipe, compile=True), options)
