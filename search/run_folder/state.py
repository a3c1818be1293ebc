"""`RunState`: how far a run has come and what it has found out, beside its trials.

The record keeps these as JSON under a key each. Here they have names and types; nothing else reads
or writes the keys.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from search.plan import PHASES, MorePlan, Plan, StepTimes
from search.record import Record
from search.run_folder.files import Owner

NOT_STARTED, DONE = "not started", "done"
T = TypeVar("T")

_PLAN, _TIMES, _MORE = TypeAdapter(Plan), TypeAdapter(StepTimes), TypeAdapter(MorePlan)
_NUMBERS = TypeAdapter(dict[int, float])
_SCORES = TypeAdapter(dict[str, dict[str, float]])
_HASHES = TypeAdapter(dict[str, str])
_OWNER = TypeAdapter(Owner)


class RunState:
    """What a run knows of itself; every assignment is committed at once.

    Args:
        record: Of the run.
    """

    __slots__ = ("_record",)

    def __init__(self, record: Record) -> None:
        self._record = record

    @property
    def spent(self) -> float:
        """Device-seconds that the budget has paid for."""
        return self._record.spent(PHASES)

    @property
    def phase(self) -> str:
        """The phase that the run is in, `NOT_STARTED` or `DONE`."""
        return self._read(TypeAdapter(str), "phase") or NOT_STARTED

    @phase.setter
    def phase(self, phase: str) -> None:
        self._record.set_meta("phase", phase)

    @property
    def tracking_id(self) -> str:
        """How trackers know the run, over all its resumes; made when it is first asked for."""
        known = self._read(TypeAdapter(str), "tracking_id")
        if known is None:
            known = uuid.uuid4().hex
            self._record.set_meta("tracking_id", known)
        return known

    @property
    def is_done(self) -> bool:
        """Whether the last phase has ended."""
        return self.phase == DONE

    @property
    def plan(self) -> Plan | None:
        """How the budget is split now; None before anything was measured."""
        return self._read(_PLAN, "plan")

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self._write(_PLAN, "plan", plan)

    @property
    def has_plan(self) -> bool:
        """Whether there is one, so that the run has really begun."""
        return self._record.get_meta("plan") is not None

    @property
    def more_plan(self) -> MorePlan | None:
        """What more budget would buy; None before anything was measured."""
        return self._read(_MORE, "more_plan")

    @more_plan.setter
    def more_plan(self, plan: MorePlan) -> None:
        self._write(_MORE, "more_plan", plan)

    @property
    def times(self) -> StepTimes | None:
        """What steps take on the devices of the run; None before that was measured."""
        return self._read(_TIMES, "times")

    @times.setter
    def times(self, times: StepTimes) -> None:
        self._write(_TIMES, "times", times)

    @property
    def measured_seconds(self) -> float | None:
        """Device-seconds that measuring took."""
        return self._number("measured_seconds")

    @measured_seconds.setter
    def measured_seconds(self, seconds: float) -> None:
        self._record.set_meta("measured_seconds", seconds)

    @property
    def worker_start_seconds(self) -> float:
        """What the worker that measured took to start; 0 where none has."""
        return self._number("worker_start") or 0.0

    @worker_start_seconds.setter
    def worker_start_seconds(self, seconds: float) -> None:
        self._record.set_meta("worker_start", seconds)

    @property
    def judge_start_seconds(self) -> float:
        """What a judge took to start; 0 where none has."""
        return self._number("judge_start") or 0.0

    @judge_start_seconds.setter
    def judge_start_seconds(self, seconds: float) -> None:
        self._record.set_meta("judge_start", seconds)

    @property
    def supernet_is_trained(self) -> bool:
        """Whether the shared weights have reached the end of their schedule."""
        return self._read(TypeAdapter(str), "supernet") == DONE

    @supernet_is_trained.setter
    def supernet_is_trained(self, is_trained: bool) -> None:
        self._record.set_meta("supernet", DONE if is_trained else None)

    @property
    def library(self) -> tuple[int, int] | None:
        """Over how many trainers a graft's parts are split, and their steps; None before."""
        return self._read(TypeAdapter(tuple[int, int]), "library")

    @library.setter
    def library(self, found: tuple[int, int]) -> None:
        self._record.set_meta("library", found)

    @property
    def library_done(self) -> int:
        """How many of these trainers have ended."""
        return self._read(TypeAdapter(int), "library_done") or 0

    @library_done.setter
    def library_done(self, number: int) -> None:
        self._record.set_meta("library_done", number)

    @property
    def supernet_devices(self) -> int | None:
        """On how many devices the supernet was begun, which decides its batch and its shards."""
        return self._read(TypeAdapter(int), "supernet_devices")

    @supernet_devices.setter
    def supernet_devices(self, devices: int) -> None:
        self._record.set_meta("supernet_devices", devices)

    @property
    def supernet_pace(self) -> float | None:
        """Device-seconds of a step, as it was at the last checkpoint; None before the first."""
        return self._number("supernet_pace")

    @supernet_pace.setter
    def supernet_pace(self, seconds: float) -> None:
        self._record.set_meta("supernet_pace", seconds)

    @property
    def estimator(self) -> str | None:
        """What networks are judged by; None before the trust phase has decided."""
        return self._read(TypeAdapter(str), "judge")

    @estimator.setter
    def estimator(self, name: str) -> None:
        self._record.set_meta("judge", name)

    @property
    def proxy_scores(self) -> dict[str, dict[str, float]] | None:
        """Zero-cost scores of the trust set by architecture key and score; None before."""
        return self._read(_SCORES, "proxies")

    @proxy_scores.setter
    def proxy_scores(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        self._record.set_meta("proxies", {key: dict(found) for key, found in scores.items()})

    @property
    def storage_sessions(self) -> tuple[str, ...]:
        """Which sessions of the storage this run may follow: its last one, or one being begun."""
        return self._read(TypeAdapter(tuple[str, ...]), "storage_sessions") or ("",)

    @storage_sessions.setter
    def storage_sessions(self, sessions: tuple[str, ...]) -> None:
        self._record.set_meta("storage_sessions", sessions)

    @property
    def owner(self) -> Owner | None:
        """Which folder went on with this run last, where copies of it share a record."""
        return self._read(_OWNER, "owner")

    @owner.setter
    def owner(self, owner: Owner) -> None:
        self._write(_OWNER, "owner", owner)

    @property
    def extraction_errors(self) -> dict[int, float]:
        """Largest difference of logits, extracted and inside the supernet, by architecture id."""
        return self._read(_NUMBERS, "extraction") or {}

    def add_extraction_errors(self, found: Mapping[int, float]) -> None:
        """Keep what was checked."""
        with self._record.together():
            self._write(_NUMBERS, "extraction", self.extraction_errors | dict(found))

    @property
    def latencies_ms(self) -> dict[int, float]:
        """Latencies that a user has measured afterwards, by architecture id."""
        return self._read(_NUMBERS, "latency_ms") or {}

    def add_latencies_ms(self, found: Mapping[int, float]) -> None:
        """Keep what was measured; measuring again replaces it."""
        with self._record.together():  # two may measure at the same time
            self._write(_NUMBERS, "latency_ms", self.latencies_ms | dict(found))

    @property
    def retrainings(self) -> dict[str, str]:
        """The hash of all that decides a retraining, by ``<architecture id> <fidelity>``."""
        return self._read(_HASHES, "retrainings") or {}

    def add_retraining(self, architecture_id: int, fidelity: str, identity: str) -> None:
        """Keep what a fidelity of an architecture was trained by."""
        known = {f"{architecture_id} {fidelity}": identity}
        with self._record.together():
            self._write(_HASHES, "retrainings", self.retrainings | known)

    def _number(self, key: str) -> float | None:
        return self._read(TypeAdapter(float), key)

    def _read(self, kind: TypeAdapter[T], key: str) -> T | None:
        stored: Any = self._record.get_meta(key)
        if stored is None:
            return None
        try:
            return kind.validate_python(stored)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise ValueError(
                f"What this run's record keeps as {key!r} is of another version of mixer-search, "
                f"or damaged ({where or 'all of it'}). Go on with the version that began the run, "
                "or begin another run."
            ) from error

    def _write(self, kind: TypeAdapter[T], key: str, value: T) -> None:
        self._record.set_meta(key, kind.dump_python(value, mode="json"))
