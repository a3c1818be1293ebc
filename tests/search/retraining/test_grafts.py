"""What a graft begins with is found wherever it lies; its networks are healed from their parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from search.retraining.graft_source import find_source
from search.retraining.wanted import RetrainPlan, assembled, prepare, start_weights
from search.run_folder import open_run, own_run, read_teacher
from search.transferring.queue import find_start
from searchspace.graft_space import Replacement, replacements, with_replacements
from supernet.data import prepare_data
from supernet.network import build_subnet
from tests.tiny_data import changed
from tests.tiny_graft import TEACHER, write_graft, write_learned_graft


def weights_of(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(build_subnet(TEACHER).state_dict())


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """A folder as `search import` leaves it."""
    folder = tmp_path / "imported"
    folder.mkdir()
    (folder / "architecture.json").write_text(json.dumps(TEACHER.to_dict()))
    save_file(weights_of(5), folder / "model.safetensors")
    return folder


def test_an_imported_checkpoint_is_found(imported: Path, tmp_path: Path) -> None:
    found = find_source(str(imported), None)
    assert found.architecture == TEACHER
    assert found.mean == (0.485, 0.456, 0.406)
    found.write(tmp_path / "teacher")
    kept = read_teacher(tmp_path / "teacher")
    assert (kept.architecture, kept.name) == (TEACHER, str(imported))
    state = kept.state()
    assert all(torch.equal(value, state[name]) for name, value in weights_of(5).items())


def test_a_file_needs_to_be_told_what_it_is(imported: Path, tmp_path: Path) -> None:
    file = str(imported / "model.safetensors")
    with pytest.raises(ValueError, match="Add --arch"):
        find_source(file, None)
    found = find_source(file, str(imported / "architecture.json"))
    assert found.architecture == TEACHER
    with pytest.raises(ValueError, match="Leave --arch out"):
        find_source(str(imported), "swin_t")
    with pytest.raises(ValueError, match="swin_t"):
        find_source(file, "swin_t_of_nobody")
    with pytest.raises(ValueError, match="there is no such file"):
        find_source(str(tmp_path / "nothing"), None)


def test_weights_of_another_network_are_refused(imported: Path) -> None:
    state = load_file(imported / "model.safetensors")
    del state["head.weight"]
    save_file(state, imported / "model.safetensors")
    with pytest.raises(ValueError, match="not those of the architecture"):
        find_source(str(imported), None)


def test_weights_that_are_no_numbers_are_refused(imported: Path) -> None:
    state = load_file(imported / "model.safetensors")
    state["head.bias"][0] = float("nan")
    save_file(state, imported / "model.safetensors")
    with pytest.raises(ValueError, match=r"finite numbers, and head.bias has others"):
        find_source(str(imported), None)


def test_an_exported_network_says_how_its_images_are_normalised(imported: Path) -> None:
    about = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "label_names": ["a", "b"]}
    config = imported / "config.json"
    config.write_text(json.dumps({"pretrained_cfg": about}))
    found = find_source(str(imported), None)
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert found.class_names == ("a", "b")
    config.write_text("{}")
    with pytest.raises(ValueError, match=r"config.json cannot be read"):
        find_source(str(imported), None)


def test_a_retraining_that_was_killed_is_no_import(imported: Path) -> None:
    """Its weights were written, and how its images are normalised was not yet."""
    (imported / "recipe.yaml").write_text("")
    with pytest.raises(ValueError, match="is not finished"):
        find_source(str(imported), None)


def test_a_training_starts_from_an_import(imported: Path) -> None:
    found, expected = start_weights(imported), weights_of(5)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.fixture
def graft(tmp_path: Path) -> Path:
    return write_learned_graft(tmp_path / "run")


def test_a_member_is_healed_from_its_parts_beside_its_teacher(graft: Path) -> None:
    replaced = [Replacement(stage=0, block=1, mlp_ratio=1.0)]
    wanted = with_replacements(TEACHER, replaced)
    with own_run(graft) as run:
        number = next(
            one.architecture_id for one in run.record.trials() if one.architecture == wanted
        )
        prepared = prepare(run, [number], RetrainPlan(epochs=1))
        assert prepared.recipe.name == "heal"
        assert prepared.data.mean == (0.5, 0.5, 0.5)
        assert prepared.teacher is not None
        state = run.teacher.state() if run.teacher else {}
        (network,) = prepared.networks
        assert network.start is not None
        for name, value in network.start.items():
            if not name.startswith("stages.0.1.mlp"):
                assert torch.equal(value, state[name])
        assert network.start["stages.0.1.mlp.fc1.weight"].shape == (16, 16)
        taught = prepared.teacher.network.state_dict()
        assert all(torch.equal(value, taught[name]) for name, value in state.items())
        # The size that the images have is no other one.
        same = prepare(run, [number], RetrainPlan(epochs=1, img_size=TEACHER.img_size))
        assert same.teacher is not None
        # With a recipe that learns from labels alone there is no teacher.
        from supernet.recipes import dump_recipe

        plain = graft / "plain.yaml"
        recipe = changed("quick", distillation=None)
        plain.write_text(dump_recipe(recipe))
        alone = prepare(run, [number], RetrainPlan(recipe=str(plain), epochs=1))
        assert alone.teacher is None
        assert replacements(TEACHER, alone.networks[0].architecture) == tuple(replaced)


def test_as_a_backbone_a_member_begins_with_its_parts(graft: Path) -> None:
    wanted = with_replacements(TEACHER, [Replacement(stage=0, block=1, mlp_ratio=1.0)])
    with own_run(graft) as run:
        number = next(
            one.architecture_id for one in run.record.trials() if one.architecture == wanted
        )
        found, name = find_start(run, number, None)
        expected = assembled(run, number).state_dict()
    assert name == "inherited"
    assert found is not None
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_a_teacher_that_is_gone_is_missed_where_the_run_keeps_it(tmp_path: Path) -> None:
    """And not in the folder of a moment that it was copied from."""
    graft = write_graft(tmp_path / "run")
    with own_run(graft) as run:
        about = run.record.get_meta("settings")
        run.record.set_meta("settings", {**about, "teacher": "/tmp/of-a-moment"})
    shutil.rmtree(graft / "teacher")
    with open_run(graft) as run, pytest.raises(ValueError, match=f"{graft.name}/teacher"):
        assert run.teacher


def test_before_its_parts_have_learned_nothing_is_healed(tmp_path: Path) -> None:
    folder = write_graft(tmp_path / "run")
    prepare_data("digits", img_size=32, folder=folder / "data")
    with own_run(folder) as run, pytest.raises(ValueError, match="have not learned yet"):
        prepare(run, [1], RetrainPlan(epochs=1))
