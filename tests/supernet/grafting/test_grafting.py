"""Laws of grafting: what is the teacher's stays the teacher's, parts learn alone, exact resume."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from searchspace.architecture import Architecture, Stage
from searchspace.cost import count
from searchspace.graft_space import (
    Replacement,
    graft_space,
    offered_replacements,
    replacements,
    with_replacements,
)
from searchspace.mixers import DepthwiseConv, GlobalAttention, Mixer, NoMixer, WindowAttention
from searchspace.space import SearchSpace
from supernet.data import ImageData
from supernet.grafting import (
    LibraryTrainer,
    assemble,
    hidden_order,
    load_library,
    part_keys,
    record_blocks,
)
from supernet.grafting.library import PARTS_FILE, normalised_error
from supernet.network import Supernet, build_subnet
from supernet.training import latest_checkpoint
from tests.supernet.network.test_extraction import randomise
from tests.tiny_data import PLAIN, changed, noise, tiny_data

WINDOW = WindowAttention(window_size=2, num_heads=2)
RECIPE = changed("quick", **PLAIN, batch_size=8)


def network_of(*stages: tuple[Mixer, ...], family: str = "swin") -> Architecture:
    return Architecture(
        img_size=16,
        patch_size=2,
        num_classes=2,
        family=family,
        stem_dim=4 if family == "volo" else 0,
        stages=tuple(
            Stage(dim=8 if family == "volo" else 8 * (index + 1), mixers=mixers, mlp_ratio=2)
            for index, mixers in enumerate(stages)
        ),
    )


TEACHERS = {
    "attention": network_of((WINDOW, WINDOW), (WINDOW,)),
    "convolutions": network_of((DepthwiseConv(kernel_size=3),) * 2),
    "both": network_of((DepthwiseConv(kernel_size=3), WINDOW)),
    "volo": network_of((WINDOW,), (GlobalAttention(num_heads=2),), family="volo"),
    "bare": Architecture(
        img_size=16,
        patch_size=2,
        num_classes=2,
        stages=(Stage(dim=8, mixers=(WINDOW, WINDOW), mlp_ratio=2, block_mlp_ratios=(0, 2)),),
    ),
    "twins": network_of((WINDOW, GlobalAttention(num_heads=2, sr_ratio=2)), family="twins"),
}


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    (tmp_path / "data").mkdir()
    return tiny_data(tmp_path / "data", *noise(28, 16))


def trained(architecture: Architecture) -> Supernet:
    torch.manual_seed(3)
    return randomise(build_subnet(architecture)).eval()


def trainer_of(
    teacher: Supernet, space: SearchSpace, data: ImageData, *, steps: int, most: int | None = None
) -> LibraryTrainer:
    assert teacher.only is not None
    return LibraryTrainer(
        teacher,
        part_keys(space, teacher.only)[:most],
        data,
        RECIPE,
        total_steps=steps,
        seed=5,
        order=hidden_order(teacher, [torch.ones(4, 3, 16, 16)]),
    )


def library_of(teacher: Supernet, space: SearchSpace, data: ImageData, out: Path) -> dict:
    trainer = trainer_of(teacher, space, data, steps=1)
    trainer.run(1)
    trainer.save(out)
    return load_library([out])


@pytest.mark.parametrize("kind", TEACHERS)
def test_with_nothing_replaced_it_is_the_teacher(
    kind: str, data: ImageData, tmp_path: Path
) -> None:
    teacher = trained(TEACHERS[kind])
    library = library_of(teacher, graft_space(TEACHERS[kind]), data, tmp_path / "library")
    same = assemble(TEACHERS[kind], teacher, library).requires_grad_(False)
    states = teacher.state_dict(), same.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert float((teacher(images) - same(images)).abs().max()) == 0.0


@pytest.mark.parametrize("kind", TEACHERS)
def test_networks_of_the_space_are_ordinary_ones(
    kind: str, data: ImageData, tmp_path: Path
) -> None:
    """Every one can be assembled; what it does not replace has the teacher's bits."""
    architecture, rng = TEACHERS[kind], random.Random(0)
    teacher, space = trained(architecture), graft_space(architecture)
    library = library_of(teacher, space, data, tmp_path / "library")
    old = teacher.state_dict()
    for _ in range(12):
        drawn = space.sample(rng)
        assert with_replacements(architecture, replacements(architecture, drawn)) == drawn
        assert space.build(lambda name, options: space.choices_of(drawn)[name]) == drawn  # noqa: B023
        network = assemble(drawn, teacher, library)
        assert sum(p.numel() for p in network.parameters()) == count(drawn).params
        replaced = {f"stages.{r.stage}.{r.block}." for r in replacements(architecture, drawn)}
        for name, value in network.state_dict().items():
            if not name.startswith(tuple(replaced)):
                assert torch.equal(value, old[name])
        # The norm in front of an MLP is the teacher's, whatever the sort of the mixer.
        for name, value in network.state_dict().items():
            if "_mlp." in name:
                names = [name.replace("conv_mlp", "attention_mlp")]
                names += [name.replace("attention_mlp", "conv_mlp")]
                assert any(one in old and torch.equal(value, old[one]) for one in names)


def test_a_block_without_mixer_and_mlp_does_and_costs_nothing(
    data: ImageData, tmp_path: Path
) -> None:
    architecture = TEACHERS["attention"]
    teacher, space = trained(architecture), graft_space(architecture)
    nothing = [
        Replacement(stage=0, block=1, mixer=NoMixer()),
        Replacement(stage=0, block=1, mlp_ratio=0.0),
    ]
    assert set(nothing) <= set(offered_replacements(space, architecture))
    emptied = with_replacements(architecture, nothing)
    shallow = architecture.replace(
        stages=(replace(architecture.stages[0], mixers=(WINDOW,)), architecture.stages[1])
    )
    assert count(emptied) == count(shallow)
    network = assemble(emptied, teacher, library_of(teacher, space, data, tmp_path))
    plain = build_subnet(shallow).eval()
    plain.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(images), plain(images))


def test_the_last_block_of_volo_keeps_its_heads() -> None:
    """Its class blocks have as many heads as the last mixer: another number is another network."""
    space = graft_space(TEACHERS["volo"])
    assert {getattr(mixer, "num_heads", 1) for mixer in space.mixers_of(1, 0)} == {2}


def test_a_stage_of_both_sorts_keeps_each_blocks_sort() -> None:
    space = graft_space(TEACHERS["both"])
    kinds = [{mixer.kind for mixer in space.mixers_of(0, block)} for block in (0, 1)]
    assert not any("attention" in kind for kind in kinds[0])
    assert "depthwise_conv" not in kinds[1]
    assert NoMixer.kind in kinds[1]


def test_parts_start_from_the_teachers_weights_where_names_and_shapes_agree() -> None:
    from searchspace.mixers import NeighborhoodAttention
    from supernet.grafting import new_part

    teacher = trained(TEACHERS["attention"])
    mixer = NeighborhoodAttention(kernel_size=3, num_heads=2)
    key = Replacement(stage=0, block=1, mixer=mixer)
    part = new_part(teacher, key, seed=0, order={}).state_dict()
    theirs = teacher.get_submodule("stages.0.1").state_dict()
    assert torch.equal(part["norms.attention.weight"], theirs["norms.attention.weight"])
    shared = {
        name: theirs[other].shape == value.shape
        for name, value in part.items()
        if (other := name.replace("neighborhood", "window")) in theirs
    }
    assert any(shared.values())
    for name, fits in shared.items():
        same = torch.equal(part[name], theirs[name.replace("neighborhood", "window")])
        assert same == fits


def test_a_narrower_mlp_starts_from_the_channels_that_add_most(
    data: ImageData, tmp_path: Path
) -> None:
    """By the rule's definition: the mean of ``|GELU(h)|`` times the length of its column."""
    architecture = TEACHERS["attention"]
    teacher = trained(architecture)
    images = torch.randn(5, 3, 16, 16)
    seen: list[Tensor] = []
    block = teacher.get_submodule("stages.0.1")
    handle = block.mlp.fc1.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.no_grad():
        teacher(images)
        handle.remove()
        hidden = F.gelu(F.linear(seen[0], block.mlp.fc1.weight, block.mlp.fc1.bias))
    columns = [float(block.mlp.fc2.weight[:, h].detach().norm()) for h in range(16)]
    sizes = [float(hidden[..., h].abs().mean()) * columns[h] for h in range(16)]
    best = sorted(sorted(range(16), key=lambda h: -sizes[h])[:8])
    key, order = Replacement(stage=0, block=1, mlp_ratio=1.0), hidden_order(teacher, [images])
    trainer = LibraryTrainer(teacher, [key], data, RECIPE, total_steps=0, seed=0, order=order)
    trainer.save(tmp_path / "library")
    library = load_library([tmp_path / "library"])
    network = assemble(with_replacements(architecture, [key]), teacher, library)
    mlp = network.get_submodule("stages.0.1.mlp")
    assert torch.equal(mlp.fc1.weight, block.mlp.fc1.weight[best])
    assert torch.equal(mlp.fc1.bias, block.mlp.fc1.bias[best])
    assert torch.equal(mlp.fc2.weight, block.mlp.fc2.weight[:, best])
    assert torch.equal(mlp.fc2.bias, block.mlp.fc2.bias)


def test_mlps_learn_what_the_teachers_add(data: ImageData) -> None:
    """All channels have nothing left to learn; half of them come nearer than they were cut."""
    teacher = trained(TEACHERS["attention"])
    order = hidden_order(teacher, [torch.randn(4, 3, 16, 16)])
    keys = [Replacement(stage=0, block=1, mlp_ratio=ratio) for ratio in (2.0, 1.0)]
    images = torch.randn(6, 3, 16, 16)

    def errors() -> list[float]:
        with torch.no_grad(), record_blocks(teacher) as records:
            teacher(images)
            record = records["stages.0.1"].mlp
            return [
                float(normalised_error(part(record.given), record.added)) for part in trainer.parts
            ]

    trainer = LibraryTrainer(teacher, keys, data, RECIPE, total_steps=60, seed=0, order=order)
    cut = errors()
    trainer.run(60)
    learned = errors()
    assert cut[0] == 0.0
    assert learned[1] < 0.8 * cut[1]


def test_the_error_is_that_of_the_definition() -> None:
    found, wanted = torch.randn(2, 3, 5, dtype=torch.float64)
    above = sum((a - b) ** 2 for a, b in zip(found.flatten(), wanted.flatten(), strict=True))
    below = sum(b**2 for b in wanted.flatten())
    assert float(normalised_error(found, wanted)) == pytest.approx(float(above / below))
    assert float(normalised_error(torch.zeros(3), torch.ones(3))) == 1.0


def test_where_there_is_nothing_to_learn_the_error_is_a_number() -> None:
    """A mixer that adds nothing at all would else make weights of its parts that are none."""
    found = torch.ones(3, requires_grad=True)
    error = normalised_error(found, torch.zeros(3))
    error.backward()
    assert float(error.detach()) == 1.0
    assert found.grad is not None
    assert bool(found.grad.isfinite().all())


def test_a_whole_checkpoint_is_not_written_again(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is killed meanwhile would have none."""
    teacher, space = trained(TEACHERS["attention"]), graft_space(TEACHERS["attention"])
    trainer = trainer_of(teacher, space, data, steps=3, most=2)
    trainer.save(tmp_path)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    written: list[Path] = []
    monkeypatch.setattr(trainer, "_write", written.append)
    trainer.save(tmp_path)
    assert not written
    assert latest_checkpoint(tmp_path) == found
    # One that is damaged is.
    monkeypatch.undo()
    (found / PARTS_FILE).write_bytes(b"")
    trainer.save(tmp_path)
    assert load_library([tmp_path])


def test_parts_learn_and_the_teacher_does_not(data: ImageData) -> None:
    teacher = trained(TEACHERS["attention"])
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer = trainer_of(teacher, graft_space(TEACHERS["attention"]), data, steps=150, most=6)
    trainer.run(150)
    assert max(trainer.errors) < 0.9
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_part_knows_of_no_other_part(data: ImageData) -> None:
    """So that they can be split over devices: alone or among others, a part gets the same bits."""
    teacher = trained(TEACHERS["attention"])
    space = graft_space(TEACHERS["attention"])
    together = trainer_of(teacher, space, data, steps=4, most=3)
    alone = trainer_of(teacher, space, data, steps=4, most=1)
    together.run(4)
    alone.run(4)
    theirs = together.parts[0].state_dict()
    for name, value in alone.parts[0].state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("killed_after", [1, 3, 5])
def test_going_on_from_a_checkpoint_gives_the_same_bits(
    killed_after: int, data: ImageData, tmp_path: Path
) -> None:
    """Also across the end of an epoch, of three steps here."""
    teacher = trained(TEACHERS["attention"])
    space = graft_space(TEACHERS["attention"])
    whole = trainer_of(teacher, space, data, steps=7, most=4)
    whole.run(7)
    whole.save(tmp_path / "whole")
    first = trainer_of(teacher, space, data, steps=7, most=4)
    first.run(killed_after)
    first.save(tmp_path / "parts")
    first.run(1)  # is lost
    second = trainer_of(teacher, space, data, steps=99, most=4)
    assert second.load(tmp_path / "parts")
    assert (second.step, second.total_steps) == (killed_after, 7)
    second.run(99)
    second.save(tmp_path / "parts")
    files = [latest_checkpoint(tmp_path / name) for name in ("whole", "parts")]
    assert files[0] is not None
    assert files[1] is not None
    one, two = (load_library([tmp_path / name]) for name in ("whole", "parts"))
    assert (files[0] / PARTS_FILE).read_bytes() == (files[1] / PARTS_FILE).read_bytes()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_part_that_is_missing_is_said(data: ImageData, tmp_path: Path) -> None:
    teacher, space = trained(TEACHERS["attention"]), graft_space(TEACHERS["attention"])
    first = next(r for r in offered_replacements(space, TEACHERS["attention"]) if r.mixer)
    with pytest.raises(ValueError, match="has no stages"):
        assemble(with_replacements(TEACHERS["attention"], [first]), teacher, {})
    with pytest.raises(ValueError, match="there is none"):
        load_library([tmp_path / "nothing"])


def test_a_library_of_other_parts_is_said(data: ImageData, tmp_path: Path) -> None:
    """As those were that had no narrower MLPs."""
    teacher, space = trained(TEACHERS["attention"]), graft_space(TEACHERS["attention"])
    trainer_of(teacher, space, data, steps=1, most=2).save(tmp_path)
    with pytest.raises(ValueError, match="has other parts than this version"):
        trainer_of(teacher, space, data, steps=1, most=3).load(tmp_path)
