"""The seam to trackers of experiments: one curve a name, one point a step, and nothing else.

Where they write, and as whom, is said as their own users know it: ``MLFLOW_TRACKING_URI``,
``MLFLOW_EXPERIMENT_NAME``, ``WANDB_PROJECT``, ``WANDB_MODE`` and so on. A tracker that breaks never
ends a run: that is said once, and what it would have got lies in the run's own folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol

logger = logging.getLogger(__name__)

TRACKERS = ("mlflow", "wandb")
PROJECT = "mixer-search"
# By which MLflow's runs are found again after a resume.
IDENTITY_TAG = "mixer_search.identity"
End = Literal["done", "failed", "stopped"]


class Tracker(Protocol):
    """What takes curves."""

    @property
    def last_step(self) -> int:
        """The last step that it has, of this process or of one before; -1 for none."""
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        ...

    def close(self, end: End) -> None:
        """End it; the same identity opens it again."""
        ...


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that is unknown or not installed.

    Raises:
        ValueError: If so.
    """
    if name is None:
        return
    if name not in TRACKERS:
        raise ValueError(f"Curves go to one of {', '.join(TRACKERS)}, got --track {name!r}.")
    if find_spec(name) is None:
        raise ValueError(
            f"--track {name} needs a package that is not installed: pip install {_PACKAGES[name]}"
        )


def open_tracker(
    name: str | None, *, identity: str, title: str, settings: Mapping[str, str]
) -> Tracker:
    """Open what ``identity`` names at a tracker, anew or where an earlier process left it.

    Args:
        name: One of `TRACKERS`; None tracks nothing.
        identity: The same text after every resume.
        title: What a person sees.
        settings: Of the run, shown beside its curves.

    Returns:
        A tracker that never raises.
    """
    return _Careful(name, identity, title, settings)


class _Careful:
    """A tracker whose faults are said once and lose nothing; it takes each step once."""

    def __init__(
        self, name: str | None, identity: str, title: str, settings: Mapping[str, str]
    ) -> None:
        self._name = name
        self._inner: Tracker | None = None
        self.last_step = -1
        if name is not None:
            with self._forgiven():
                opened: Tracker = _OPEN[name](identity, title, settings)
                self.last_step = opened.last_step
                self._inner = opened

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self._inner is None or step <= self.last_step:
            return
        with self._forgiven():
            self._inner.log(values, step)
            self.last_step = step

    def close(self, end: End) -> None:
        if self._inner is not None:
            with self._forgiven():
                self._inner.close(end)

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._inner = None
            logger.warning("%s gets no more curves (%s); the run goes on.", self._name, error)


class _Mlflow:
    """A run at an MLflow server, or in its local store."""

    def __init__(self, identity: str, title: str, settings: Mapping[str, str]) -> None:
        mlflow = import_module("mlflow")
        self._client: Any = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([number], f"tags.`{IDENTITY_TAG}` = '{identity}'")
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            tags = {IDENTITY_TAG: identity}
            self._run = self._client.create_run(number, tags=tags, run_name=title).info.run_id
            for key, value in settings.items():
                self._client.log_param(self._run, key, value)

    @property
    def last_step(self) -> int:
        names = self._client.get_run(self._run).data.metrics
        histories = (self._client.get_metric_history(self._run, name) for name in names)
        return max((point.step for history in histories for point in history), default=-1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self, end: End) -> None:
        status = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[end]
        self._client.set_terminated(self._run, status=status)


class _Wandb:
    """A run of Weights & Biases; on this machine alone unless ``WANDB_MODE`` says ``online``."""

    def __init__(self, identity: str, title: str, settings: Mapping[str, str]) -> None:
        wandb = import_module("wandb")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identity,
            name=title,
            config=dict(settings),
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )

    @property
    def last_step(self) -> int:
        # It counts the steps to come.
        return int(self._run.step) - 1

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self, end: End) -> None:
        self._run.finish(exit_code=int(end != "done"))


_OPEN: dict[str, Callable[[str, str, Mapping[str, str]], Tracker]] = {
    "mlflow": _Mlflow,
    "wandb": _Wandb,
}
_PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}
