"""Shared weights that learn from a teacher: the loss by its definition, one hearing of a batch."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.space import MixerChoices, SearchSpace, StageChoices
from supernet.data import ImageData
from supernet.network.supernet import Supernet
from supernet.recipes.recipe import Distillation, Recipe, load_recipe
from supernet.shared_weights.trainer import SupernetTrainer, accumulate_gradients
from supernet.training import Lesson, Teacher
from tests.tiny_data import changed, noise, tiny_data
from tests.tiny_teachers import tiny_teacher

KINDS = {
    "neighborhood_attention": {"kernel_size": (3,), "num_heads": (1, 2)},
    "elsa": {"kernel_size": (3,), "num_heads": (1, 2)},
}
STAGE = StageChoices(dims=(8,), depths=(2,), mlp_ratios=(1,), choices=(MixerChoices(kinds=KINDS),))
SPACE = SearchSpace(name="small", img_size=8, patch_size=2, num_classes=2, stages=(STAGE,))


def recipe_with(weight: float, temperature: float = 3.0, **more: float) -> Recipe:
    settings = {"weight": weight, "temperature": temperature, **more}
    return changed("supernet", batch_size=8, label_smoothing=0.0, distillation=settings)


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    (tmp_path / "data").mkdir()
    return tiny_data(tmp_path / "data", *noise(44, 8))


def trainer(
    data: ImageData, recipe: Recipe, teacher: Teacher | None, strategy: str = "sandwich"
) -> SupernetTrainer:
    return SupernetTrainer(
        SPACE, data, recipe, strategy=strategy, total_steps=6, seed=0, teacher=teacher
    )


def states(*trained: SupernetTrainer) -> list[dict[str, Tensor]]:
    return [dict(one.supernet.state_dict()) for one in trained]


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("distil", [False, True])
def test_every_architecture_learns_what_the_teacher_says(distil: bool) -> None:
    """``(1 - w) task + w T^2 KL``, task being the labels or, in a sandwich, the first's opinion."""
    torch.manual_seed(0)
    supernet, teacher = Supernet(SPACE), tiny_teacher()
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
    named = [SPACE.sample(random.Random(seed)) for seed in range(3)]
    weight, temperature = 0.3, 2.0
    mean, std = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)
    settings = Distillation(weight=weight, temperature=temperature)
    lesson = Lesson(teacher, settings, mean, std, torch.device("cpu"))
    accumulate_gradients(
        supernet, named, images, labels, recipe_with(0.9), distil=distil, lesson=lesson
    )
    found = supernet.head.weight.grad
    assert found is not None

    as_raw = images * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1)
    seen = (as_raw - torch.tensor(teacher.mean).view(1, 3, 1, 1)) / torch.tensor(teacher.std).view(
        1, 3, 1, 1
    )
    said = teacher.network(seen).detach() / temperature
    losses, opinion = [], None
    for architecture in named:
        logits = supernet(images, architecture)
        task = F.cross_entropy(logits, labels if opinion is None else opinion)
        if distil and opinion is None:
            opinion = logits.detach().softmax(1)
        p, log_q = said.softmax(1), (logits / temperature).log_softmax(1)
        divergence = (p * (p.log() - log_q)).sum(1).mean()
        losses.append((1 - weight) * task + weight * temperature**2 * divergence)
    (expected,) = torch.autograd.grad(torch.stack(losses).mean(), supernet.head.weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_batch_is_heard_once_for_all_its_architectures(data: ImageData) -> None:
    teacher, heard = tiny_teacher(), list[int]()
    teacher.network.register_forward_hook(lambda m, given, out: heard.append(len(given[0])))
    trainer(data, recipe_with(0.5), teacher).run(3)
    assert heard == [8, 8, 8]


def test_a_teacher_that_counts_for_nothing_changes_nothing(data: ImageData) -> None:
    trained = [
        trainer(data, recipe_with(weight), teacher)
        for weight, teacher in ((0.0, tiny_teacher()), (0.0, None), (0.5, tiny_teacher()))
    ]
    for one in trained:
        one.run(4)
    silent, plain, taught = states(*trained)
    assert equal(silent, plain)
    assert not equal(taught, plain)


def test_with_the_teacher_alone_labels_play_no_part(data: ImageData, tmp_path: Path) -> None:
    images, labels = noise(44, 8)
    (tmp_path / "wrong").mkdir()
    wrong = tiny_data(tmp_path / "wrong", images, 1 - labels)
    trained = [
        trainer(one, recipe_with(1.0), tiny_teacher(), strategy="fair") for one in (data, wrong)
    ]
    for one in trained:
        one.run(3)
    assert equal(*states(*trained))


def test_a_taught_training_goes_on_as_if_it_had_not_stopped(
    data: ImageData, tmp_path: Path
) -> None:
    recipe = recipe_with(0.5, labels_from=0.5)
    whole, first, second = (trainer(data, recipe, tiny_teacher()) for _ in range(3))
    whole.run(6)
    first.run(2)
    first.save(tmp_path / "supernet")
    assert second.load(tmp_path / "supernet")
    second.run(6)
    assert second.step == 6
    assert equal(*states(whole, second))


def test_labels_count_from_their_share_of_the_steps_on(data: ImageData, tmp_path: Path) -> None:
    images, labels = noise(44, 8)
    (tmp_path / "wrong").mkdir()
    wrong = tiny_data(tmp_path / "wrong", images, 1 - labels)
    recipe = recipe_with(0.5, labels_from=0.5)
    right, other = (trainer(one, recipe, tiny_teacher(), "fair") for one in (data, wrong))
    right.run(3)
    other.run(3)
    assert equal(*states(right, other))
    right.run(1)
    other.run(1)
    assert not equal(*states(right, other))


@pytest.mark.parametrize("what", ["tokens", "features"])
def test_shared_weights_learn_logits_alone(data: ImageData, what: str) -> None:
    with pytest.raises(ValueError, match=r"learn a teacher's logits.*tokens: 0 and features: 0"):
        trainer(data, recipe_with(0.5, **{what: 1.0}), tiny_teacher())
    trainer(data, recipe_with(0.5, **{what: 1.0}), None)
    silent = load_recipe("supernet").model_copy(update={"distillation": None})
    with pytest.raises(ValueError, match="has no distillation"):
        trainer(data, silent, tiny_teacher())


def test_the_shipped_recipes_of_shared_weights_say_what_a_teacher_counts_for() -> None:
    for name in ("supernet", "supernet_224"):
        assert load_recipe(name).distillation == Distillation(weight=0.1, temperature=3.0)


class Mute(nn.Module):
    """Says what is no number of the second batch that it is shown, and of all after it."""

    heard = 0

    def forward(self, images: Tensor) -> Tensor:
        self.heard += 1
        said = images.mean((2, 3))[:, :2]
        return said if self.heard == 1 else said * float("nan")


def test_a_teacher_that_says_no_numbers_is_named(data: ImageData) -> None:
    teacher = tiny_teacher(Mute())
    training = SupernetTrainer(
        SPACE, data, recipe_with(0.5), strategy="fair", total_steps=60, seed=0, teacher=teacher
    )
    with pytest.raises(FloatingPointError, match="The teacher a teacher said what is no finite"):
        training.run(60)
