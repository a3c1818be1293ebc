"""`search plan --teacher`: its steps are measured with the teacher, and no others are taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search.phases.planning import TimesFrom, plan_here
from search.phases.step_times import read_times, write_times
from search.retraining.teachers import look_for_teacher
from search.run_folder import RunSettings
from supernet.data import prepare_data
from tests.tiny_data import noise, write_images
from tests.tiny_teachers import SPACE, retrained_teacher


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    source = write_images(tmp_path / "images", *noise(150, 8), num_test=6)
    (tmp_path / "tiny.yaml").write_text(SPACE)
    data = prepare_data(source, img_size=8, folder=tmp_path / "prepared")
    teacher = retrained_teacher(data, tmp_path / "teacher")
    return RunSettings(
        data=source,
        space=str(tmp_path / "tiny.yaml"),
        budget="10cpu-minutes",
        strategy="proxy",
        taught_by=str(teacher),
    )


def test_a_plan_is_measured_with_the_teacher_and_takes_no_other_times(
    settings: RunSettings, tmp_path: Path
) -> None:
    find = look_for_teacher(settings.taught_by)
    made = plan_here(settings, devices=2, teacher=find)
    assert len(made.times.teacher) == 64
    taught, plain = tmp_path / "taught.json", tmp_path / "plain.json"
    write_times(taught, made.times)
    write_times(plain, replace(made.times, teacher=""))
    assert read_times(taught) == made.times

    same = plan_here(settings, devices=2, teacher=find, times_from=TimesFrom(times=taught))
    assert same.times.trial_steps == made.times.trial_steps
    with pytest.raises(ValueError, match=r"steps with no teacher, and the plan is asked with --t"):
        plan_here(settings, devices=2, teacher=find, times_from=TimesFrom(times=plain))
    without = replace(settings, taught_by="")
    with pytest.raises(ValueError, match=r"steps with a teacher, and .* no --teacher, which"):
        plan_here(without, devices=2, times_from=TimesFrom(times=taught))
    assert plan_here(without, devices=2, times_from=TimesFrom(times=plain)).times.teacher == ""
    with pytest.raises(ValueError, match="profiles of devices know no teachers"):
        plan_here(settings, devices=2, teacher=find, times_from=TimesFrom(profile="cpu"))
