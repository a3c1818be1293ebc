"""`StepTimes` from elsewhere: a file, another run, or the shipped profile of a device."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs import config_path
from configs.reading import read_json, read_yaml, typed
from search.budget import Device
from search.plan import SUPERNET_SHARD, StepTimes
from search.run_folder import RunSettings
from searchspace.cost import count
from searchspace.space import SearchSpace
from supernet.data import ImageData
from supernet.data.dense import SearchedData
from supernet.recipes import load_recipe

# What a file of times is known by.
KIND = "mixer-search step times"
GIGA = 1e9


class DeviceProfile(BaseModel):
    """How fast a device is taken to be; a file of ``configs/devices``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    about: str = Field(description="Its maker and memory.")
    device: Device = Field(description="What a budget of it counts.")
    train_rate: float = Field(gt=0, description="Images/s x GMACs, forward and backward.")
    judge_rate: float = Field(gt=0, description="Images/s x GMACs of an evaluation.")
    step_seconds: float = Field(ge=0, description="Of a step, however small the network.")
    amp: str = Field(description="The precision that the rates are of.")
    source: str = Field(description="Where the values come from.")


def read_profile(name_or_path: str, settings: RunSettings) -> DeviceProfile:
    """Read the profile of a device that the budget counts.

    Raises:
        ValueError: If there is no such profile, or it counts another device than the budget.
    """
    path = config_path("devices", name_or_path)
    try:
        profile = DeviceProfile.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ValueError(f"{path}: this is no profile of a device: {error}") from error
    budget = settings.parsed_budget.device
    if profile.device != budget:
        raise ValueError(
            f"The profile {name_or_path} is of a {profile.device}, and the budget "
            f"{settings.budget!r} counts {budget} time. Write a {profile.device} budget."
        )
    return profile


def profile_times(
    profile: DeviceProfile, settings: RunSettings, space: SearchSpace, data: ImageData
) -> StepTimes:
    """Estimate what steps take on a device that has a profile."""
    macs = [count(space.extreme("macs", largest=largest)).macs for largest in (False, True)]
    batch = load_recipe(settings.trial_recipe).batch_size
    rate, judged = profile.train_rate * GIGA, data.sizes["search"]
    points = tuple((m, profile.step_seconds + batch * m / rate) for m in macs)
    middle = sum(macs) / len(macs)
    return StepTimes(
        supernet_step=profile.step_seconds + SUPERNET_SHARD * middle / rate,
        trial_steps=points,
        judge=judged * middle / (profile.judge_rate * GIGA),
        steps_per_epoch=max(data.sizes["train"] // batch, 1),
        device_name=profile.name,
        batch_size=batch,
        supernet_batch=SUPERNET_SHARD,
        judged_images=judged,
        amp=profile.amp,
        source=profile.source,
    )


def read_times(path: Path) -> StepTimes:
    """Read the times of a run's folder, or of a file that `write_times` has written.

    Raises:
        ValueError: If there are none.
    """
    if path.is_dir():
        from search.run_folder import open_run

        with open_run(path) as run:
            stored = run.state.times
        if stored is None:
            raise ValueError(
                f"{path} has not measured anything yet. Name a run that has begun its first phase, "
                "or a file of `search plan --save-times`."
            )
        return stored
    if not path.is_file():
        raise ValueError(
            f"There is no run or file {str(path)!r}. --times takes a run's folder, or a file of "
            "`search plan --save-times`."
        )
    text: Any = read_json(path)
    if not isinstance(text, dict) or text.get("kind") != KIND:
        raise ValueError(
            f"{path} is no file of `search plan --save-times`: its kind is not {KIND!r}."
        )
    try:
        values = {name: value for name, value in text.items() if name != "kind"}
        return typed(StepTimes, values)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: {error}. Write it again with `search plan --save-times`."
        ) from error


def write_times(path: Path, times: StepTimes) -> None:
    """Write times as JSON, to plan with on machines that have no such device."""
    path.write_text(json.dumps({"kind": KIND, **asdict(times)}, indent=2) + "\n", encoding="utf-8")


def times_for(
    times: StepTimes, data: ImageData | SearchedData, batch: int, *, train_images: int
) -> StepTimes:
    """Carry times over to other images and another batch of the supernet: work is in proportion.

    Args:
        times: As measured or estimated.
        data: What the plan is for.
        batch: Images of a step of the supernet.
        train_images: Of an epoch.
    """
    changed: dict[str, Any] = {}
    if times.batch_size:
        changed["steps_per_epoch"] = max(train_images // times.batch_size, 1)
    if times.judged_images:
        changed["judge"] = times.judge * data.sizes["search"] / times.judged_images
    if times.supernet_batch:
        changed["supernet_step"] = times.supernet_step * batch / times.supernet_batch
    return replace(times, **changed)
