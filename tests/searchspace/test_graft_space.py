"""The space of a graft: what it offers a teacher's blocks, and that a run can read it again."""

from __future__ import annotations

from searchspace.architecture import Architecture, Stage
from searchspace.graft_space import graft_space, offered_replacements
from searchspace.mixers import DepthwiseConv, NoMixer, WindowAttention
from searchspace.space import MixerChoices, SearchSpace, StageChoices
from searchspace.spec_file import load_space, parse_space

WINDOW = WindowAttention(window_size=4, num_heads=2)


def teacher_of(*mixers: WindowAttention | NoMixer | DepthwiseConv, size: int = 32) -> Architecture:
    stage = Stage(dim=16, mixers=mixers, mlp_ratio=2)
    return Architecture(img_size=size, patch_size=4, num_classes=10, stages=(stage,))


def test_the_text_that_a_run_keeps_is_that_of_the_space_whose_mixers_are_offered() -> None:
    """A run writes it as space.yaml, and reads its space from there ever after."""
    offered = load_space("digits")
    teacher = offered.first().replace(num_classes=10)
    found = graft_space(teacher, offered)
    assert graft_space(teacher, parse_space(found.source)) == found


def test_where_the_teacher_mixes_nothing_no_mixer_is_offered() -> None:
    """None could learn there, and a network with one could not be made."""
    teacher = teacher_of(WINDOW, NoMixer())
    for offered in (None, load_space("digits")):
        space = graft_space(
            teacher, None if offered is None else offered.replace(stages=offered.stages[:1])
        )
        places = {one.block for one in offered_replacements(space, teacher) if one.mixer}
        assert places == {0}
        # Its MLP is an MLP like others.
        assert any(one.block == 1 for one in offered_replacements(space, teacher))


def test_windows_are_those_of_the_teachers_maps() -> None:
    """The space may be written for smaller images, whose maps its windows would not fit."""
    windows = {"window_attention": {"window_size": (16,), "num_heads": (2,)}}
    stage = StageChoices(dims=(16,), depths=(1,), choices=(MixerChoices(kinds=windows),))
    offered = SearchSpace(name="of 32 pixels", img_size=32, patch_size=4, stages=(stage,))
    small, large = (
        {
            one.mixer.window_size
            for one in offered_replacements(graft_space(teacher, offered), teacher)
            if isinstance(one.mixer, WindowAttention)
        }
        for teacher in (teacher_of(WINDOW), teacher_of(WINDOW, size=64))
    )
    assert (small, large) == ({8}, {16})
