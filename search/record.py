"""`Record`: the one truth about a run, in one SQLite file that the driver writes.

A trial is an architecture judged at one fidelity with one seed. An attempt is one try at a trial,
or a phase's own work (training the supernet), and holds devices while it is open. The budget spent
is the sum over attempts of ``(ended - started) * devices``; an attempt that its process did not
live to end is charged until it was last seen. Every method is one transaction, and
`Record.together` makes several one.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TextIO, get_args

from search.open_attempts import OpenAttempts
from search.record_file import (
    BY_TRIAL,
    CHARGE,
    CHARGE_OF_OTHERS,
    TRIALS,
    claim_file,
    create_file,
    open_file,
)
from searchspace.architecture import Architecture

State = Literal["waiting", "running", "done", "failed"]
Outcome = Literal["done", "failed", "interrupted", "lost"]

# What becomes of the trial; work that was interrupted or lost is queued again.
STATE_AFTER: Mapping[Outcome, State] = {
    "done": "done",
    "failed": "failed",
    "interrupted": "waiting",
    "lost": "waiting",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """An architecture judged at one fidelity with one seed, and what came of it.

    Attributes:
        origin: Who asked for it, e.g. the sampler or a promotion.
        values: What was measured, e.g. ``top1``; empty unless the trial is done.
        cause: Why its last attempt gave no result, where that was said.
        seconds: Device-seconds charged for all its attempts.
        num_attempts: How often it was tried.
        finished: When it was done or failed, in seconds of the record's clock; else None.
    """

    id: int
    architecture_id: int
    key: str
    architecture: Architecture
    params: int
    macs: int
    fidelity: str
    seed: int
    origin: str
    state: State
    values: Mapping[str, float]
    cause: str | None
    seconds: float
    num_attempts: int
    finished: float | None


@dataclass(frozen=True, slots=True)
class _Known:
    key: str
    architecture: Architecture
    params: int
    macs: int


class Record:
    """A run's trials, attempts and settings; many may read it, one process writes attempts.

    Methods may be called from several threads. Make one with `create` or `open`.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, clock: Callable[[], float]):
        self._connection = connection
        self._path = path
        self._clock = clock
        self._lock = threading.RLock()
        self._live = OpenAttempts()
        self._known: dict[int, _Known] = {}
        self._claim_file: TextIO | None = None
        # Charges of all other attempts by phase, in the order in which the phases began; kept only
        # while this process is the one that writes attempts.
        self._ended: dict[str, float] | None = None

    @classmethod
    def create(cls, path: Path, *, clock: Callable[[], float] = time.time) -> Record:
        """Start a record in a new file.

        Raises:
            ValueError: If the file exists.
        """
        return cls(create_file(path), path, clock)

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], float] = time.time) -> Record:
        """Open a record, to read it or to go on with it; `close_orphans` comes before new attempts.

        Raises:
            ValueError: If the file is missing, no record, or one of another schema version.
        """
        return cls(open_file(path), path, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Attempts that are open stay so, as after a crash."""
        with self._lock:
            self._connection.close()
            if self._claim_file:
                self._claim_file.close()
                self._claim_file = self._ended = None

    def get_meta(self, key: str) -> Any:
        """Return the JSON value that was set last, or None."""
        rows = self._read("SELECT value FROM meta WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    def set_meta(self, key: str, value: Any) -> None:
        """Set a JSON value under a key, over an older one."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO meta VALUES (?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, json.dumps(value)),
            )

    def add_architecture(self, architecture: Architecture, *, params: int, macs: int) -> int:
        """Return the id of the architecture, which it got when it was first added."""
        key = architecture.key
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO architectures (key, description, params, macs) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (key) DO NOTHING",
                (key, json.dumps(architecture.to_dict()), params, macs),
            )
            query = "SELECT id FROM architectures WHERE key = ?"
            return int(connection.execute(query, (key,)).fetchone()[0])

    def architecture(self, architecture_id: int) -> Architecture:
        """Return the architecture with an id; ValueError if there is none."""
        return self._get_known(architecture_id).architecture

    def architecture_id(self, key: str) -> int | None:
        """Return the id of the architecture with a key, or None."""
        rows = self._read("SELECT id FROM architectures WHERE key = ?", (key,))
        return int(rows[0][0]) if rows else None

    def add_trial(self, architecture_id: int, *, fidelity: str, seed: int, origin: str) -> int:
        """Return the id of the trial of an architecture, fidelity and seed; a new one waits."""
        self._get_known(architecture_id)
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO trials (architecture_id, fidelity, seed, origin, state) "
                "VALUES (?, ?, ?, ?, 'waiting') ON CONFLICT DO NOTHING",
                (architecture_id, fidelity, seed, origin),
            )
            query = "SELECT id FROM trials WHERE (architecture_id, fidelity, seed) = (?, ?, ?)"
            row = connection.execute(query, (architecture_id, fidelity, seed)).fetchone()
            return int(row[0])

    def start_attempt(self, phase: str, *, devices: float, trial_id: int | None = None) -> int:
        """Begin to charge for ``devices`` devices; a trial that waits is running from now on.

        Raises:
            ValueError: If the trial does not wait, or another process writes this record.
        """
        if not 0 <= devices < math.inf:
            raise ValueError(f"An attempt holds a finite number >= 0 of devices, got {devices}.")
        self._claim()
        with self._lock:
            with self._transaction() as connection:
                if trial_id is not None:
                    _begin_trial(connection, trial_id)
                now = self._clock()
                attempt_id = connection.execute(
                    "INSERT INTO attempts (phase, trial_id, number, devices, started, last_seen) "
                    "SELECT :phase, :trial, coalesce(max(number), 0) + 1, :devices, :now, :now "
                    "FROM attempts WHERE trial_id IS :trial",
                    {"phase": phase, "trial": trial_id, "devices": devices, "now": now},
                ).lastrowid
            assert attempt_id is not None
            self._live.add(attempt_id, phase=phase, devices=devices, now=now)
            if self._ended is not None:
                self._ended.setdefault(phase, 0.0)
            return attempt_id

    def finish_attempt(
        self,
        attempt_id: int,
        *,
        outcome: Outcome,
        values: Mapping[str, float] | None = None,
        cause: str | None = None,
    ) -> None:
        """End an attempt now and, in the same transaction, settle its trial.

        Args:
            attempt_id: An open attempt that this process started.
            outcome: ``done`` and ``failed`` are final; after ``interrupted`` and ``lost`` the trial
                waits again.
            values: What a trial's ``done`` attempt measured; nothing else has values.
            cause: Why there is no result; ``failed`` needs it.

        Raises:
            ValueError: If the attempt is not open or not ours, or the outcome lacks what it needs.
        """
        if outcome not in get_args(Outcome):
            raise ValueError(f"Outcomes are {', '.join(STATE_AFTER)}; got {outcome!r}.")
        if outcome == "failed" and not cause:
            raise ValueError("A failed attempt needs its cause.")
        with self._lock:
            with self._transaction() as connection:
                trial_id = self._open_attempt(connection, attempt_id)
                needs_values = outcome == "done" and trial_id is not None
                if needs_values != bool(values):
                    raise ValueError(
                        "A trial's attempt that is done has values, and nothing else has; got "
                        f"{outcome=}, {trial_id=}, {values=}."
                    )
                connection.execute(
                    "UPDATE attempts SET ended = max(last_seen, ?), outcome = ?, cause = ? "
                    "WHERE id = ?",
                    (self._clock(), outcome, cause, attempt_id),
                )
                if trial_id is not None:
                    result = _result_text(values) if values else None
                    connection.execute(
                        "UPDATE trials SET state = ?, result = ? WHERE id = ?",
                        (STATE_AFTER[outcome], result, trial_id),
                    )
                charge = connection.execute(
                    f"SELECT phase, {CHARGE_OF_OTHERS} FROM attempts WHERE id = ?", (attempt_id,)
                ).fetchone()
            self._live.remove(attempt_id)
            if self._ended is not None:
                self._ended[charge[0]] += charge[1]

    def heartbeat(self) -> None:
        """Mark the open attempts of this process as alive now."""
        with self._lock:
            now = self._clock()
            with self._transaction() as connection:
                connection.execute(
                    "UPDATE attempts SET last_seen = max(last_seen, ?) "
                    "WHERE ended IS NULL AND id IN (SELECT value FROM json_each(?))",
                    (now, self._live_ids()),
                )
            self._live.see(now)

    def close_orphans(self) -> tuple[Trial, ...]:
        """End the attempts that another process left open, when they were last seen.

        Returns:
            Their trials, which wait again.

        Raises:
            ValueError: If that process still runs.
        """
        self._claim()
        orphans = "ended IS NULL AND id NOT IN (SELECT value FROM json_each(?))"
        with self._transaction() as connection:
            live = self._live_ids()
            rows = connection.execute(
                f"SELECT trial_id FROM attempts WHERE {orphans} AND trial_id IS NOT NULL", (live,)
            ).fetchall()
            connection.executemany("UPDATE trials SET state = 'waiting' WHERE id = ?", rows)
            connection.execute(
                "UPDATE attempts SET ended = last_seen, outcome = 'interrupted', "
                f"cause = 'the process that ran it ended' WHERE {orphans}",
                (live,),
            )
            self._ended = None
            return tuple(self.trial(trial_id) for (trial_id,) in sorted(rows))

    def spent(self, phases: Collection[str] | None = None) -> float:
        """Sum the device-seconds that are charged to some phases, or to all."""
        by_phase = self.spent_by_phase()
        return math.fsum(
            seconds for phase, seconds in by_phase.items() if phases is None or phase in phases
        )

    def spent_by_phase(self) -> dict[str, float]:
        """Sum the device-seconds of each phase, in the order in which the phases began."""
        query = "SELECT phase, sum({}) FROM attempts GROUP BY phase ORDER BY min(id)"
        with self._lock:
            if self._claim_file is None:
                rows = self._read(query.format(CHARGE), self._moment())
                return {phase: float(seconds) for phase, seconds in rows}
            if self._ended is None:
                # Phases all of whose attempts are ours and open count as well, with nothing.
                live = "attempts.id IN (SELECT value FROM json_each(?))"
                others = f"CASE WHEN {live} THEN 0 ELSE {CHARGE_OF_OTHERS} END"
                rows = self._read(query.format(others), (self._live_ids(),))
                self._ended = {phase: float(seconds) for phase, seconds in rows}
            spent = dict(self._ended)
            for phase, charge in self._live.charges(self._clock()).items():
                spent[phase] += charge
            return spent

    def count_lost(self, trial_id: int) -> int:
        """Count the attempts at a trial that the cluster lost; interruptions do not count."""
        query = "SELECT count(*) FROM attempts WHERE trial_id = ? AND outcome = 'lost'"
        return int(self._read(query, (trial_id,))[0][0])

    def causes(self, trial_id: int) -> tuple[str, ...]:
        """List why attempts at a trial gave no result, where that was said, the first one first."""
        query = "SELECT cause FROM attempts WHERE trial_id = ? AND cause NOT NULL ORDER BY number"
        return tuple(cause for (cause,) in self._read(query, (trial_id,)))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make all calls of the block one transaction: they are durable when it ends, or void.

        After an error inside, the attempts that it began or ended are not to be used.
        """
        with self._transaction():
            yield

    def charges(self, phases: Collection[str]) -> tuple[tuple[float, float, float], ...]:
        """List (started, ended, devices) of the ended attempts of some phases, by their start."""
        rows = self._read(
            "SELECT started, ended, devices FROM attempts WHERE ended IS NOT NULL AND devices > 0 "
            "AND phase IN (SELECT value FROM json_each(?)) ORDER BY started",
            (json.dumps(sorted(phases)),),
        )
        return tuple((float(start), float(end), float(devices)) for start, end, devices in rows)

    def trials(
        self, *, fidelity: str | None = None, state: State | None = None
    ) -> tuple[Trial, ...]:
        """List trials in the order in which they were added."""
        rows = self._read(
            f"{TRIALS} WHERE (:fidelity IS NULL OR fidelity = :fidelity) "
            f"AND (:state IS NULL OR state = :state) {BY_TRIAL}",
            {**self._moment(), "fidelity": fidelity, "state": state},
        )
        return tuple(map(self._to_trial, rows))

    def trial(self, trial_id: int) -> Trial:
        """Return the trial with an id; ValueError if there is none."""
        query = f"{TRIALS} WHERE trials.id = :id {BY_TRIAL}"
        rows = self._read(query, {**self._moment(), "id": trial_id})
        if not rows:
            raise ValueError(f"{self._path} has no trial {trial_id}.")
        return self._to_trial(rows[0])

    def _live_ids(self) -> str:
        with self._lock:
            return json.dumps([*self._live])

    def _moment(self) -> dict[str, Any]:
        return {"live": self._live_ids(), "now": self._clock()}

    def _to_trial(self, row: tuple[Any, ...]) -> Trial:
        (trial_id, architecture_id, fidelity, seed, origin, state, result) = row[:7]
        (seconds, num_attempts, ended, cause) = row[7:]
        known = self._get_known(architecture_id)
        return Trial(
            id=trial_id,
            architecture_id=architecture_id,
            key=known.key,
            architecture=known.architecture,
            params=known.params,
            macs=known.macs,
            fidelity=fidelity,
            seed=seed,
            origin=origin,
            state=state,
            values=json.loads(result) if result else {},
            cause=cause,
            seconds=float(seconds),
            num_attempts=num_attempts,
            finished=ended if state in ("done", "failed") else None,
        )

    def _get_known(self, architecture_id: int) -> _Known:
        if architecture_id not in self._known:
            query = "SELECT key, description, params, macs FROM architectures WHERE id = ?"
            rows = self._read(query, (architecture_id,))
            if not rows:
                raise ValueError(f"{self._path} has no architecture {architecture_id}.")
            key, description, params, macs = rows[0]
            architecture = Architecture.from_dict(json.loads(description))
            self._known[architecture_id] = _Known(key, architecture, params, macs)
        return self._known[architecture_id]

    def _open_attempt(self, connection: sqlite3.Connection, attempt_id: int) -> int | None:
        """Return the trial of an open attempt of ours."""
        query = "SELECT trial_id, outcome FROM attempts WHERE id = ?"
        row = connection.execute(query, (attempt_id,)).fetchone()
        if row is None:
            raise ValueError(f"{self._path} has no attempt {attempt_id}.")
        trial_id, outcome = row
        if outcome is not None:
            raise ValueError(f"Attempt {attempt_id} has ended already, with outcome {outcome!r}.")
        if attempt_id not in self._live:
            raise ValueError(
                f"Attempt {attempt_id} belongs to a process that ended; close_orphans() settles it."
            )
        return None if trial_id is None else int(trial_id)

    def _claim(self) -> None:
        with self._lock:
            self._claim_file = self._claim_file or claim_file(self._path)

    def _read(self, query: str, values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._connection.in_transaction:  # in a block of `together`
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # A full disk may have rolled it back already.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._forget_undone()
                raise

    def _forget_undone(self) -> None:
        rows = self._read("SELECT id FROM attempts WHERE ended IS NULL", ())
        self._live.keep({attempt_id for (attempt_id,) in rows})
        self._ended = None


def _begin_trial(connection: sqlite3.Connection, trial_id: int) -> None:
    query = "UPDATE trials SET state = 'running' WHERE id = ? AND state = 'waiting'"
    if connection.execute(query, (trial_id,)).rowcount == 0:
        row = connection.execute("SELECT state FROM trials WHERE id = ?", (trial_id,)).fetchone()
        state = row[0] if row else "unknown"
        raise ValueError(f"Only a trial that waits can be started; trial {trial_id} is {state}.")


def _result_text(values: Mapping[str, float]) -> str:
    if not all(map(math.isfinite, values.values())):
        raise ValueError(
            f"A trial's values must be finite, got {dict(values)}. "
            "Finish it as failed, with a cause."
        )
    return json.dumps({name: float(value) for name, value in values.items()})
