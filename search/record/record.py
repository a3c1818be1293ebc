"""`Record`: the one truth about a run, in a database that the driver writes.

A trial is an architecture judged at one fidelity with one seed. An attempt is one try at a trial,
or a phase's own work (training the supernet), and holds devices while it is open. The budget spent
is the sum over attempts of ``(ended - started) * devices``; an attempt that its process did not
live to end is charged until it was last seen. Every method is one transaction, and
`Record.together` makes several one. Times are those of one clock that never jumps while a process
lives (`SteadyClock`), so that a wall clock that is set changes no charge.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from search.record.measured import Measured
from search.record.open_attempts import OpenAttempt, OpenAttempts
from search.record.schema import (
    BY_TRIAL,
    CHARGE,
    LEDGER,
    NEXT_ATTEMPT,
    TRIALS,
    Address,
    Database,
    Rows,
    Values,
    create_database,
    next_id,
    open_database,
)
from searchspace.architecture import Architecture

# In the meta table: when a process last took the record up.
ENTERED = "entered"

State = Literal["waiting", "running", "done", "failed"]
AttemptOutcome = Literal["done", "failed", "interrupted", "lost"]

# What becomes of the trial; work that was interrupted or lost is queued again.
STATE_AFTER: Mapping[AttemptOutcome, State] = {
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
        measured: What was measured; nothing unless the trial is done.
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
    measured: Measured
    cause: str | None
    seconds: float
    num_attempts: int
    finished: float | None


class SteadyClock:
    """Seconds since 1970 by the wall clock's time when it was made, and evenly from then on."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return self._offset + time.monotonic()


class Record:
    """A run's trials, attempts and settings; many may read it, one process writes attempts.

    Methods may be called from several threads. Make one with `create` or `open`.
    """

    def __init__(self, database: Database, clock: Callable[[], float]):
        self._database = database
        self._clock = clock
        self._lock = threading.RLock()
        self._live = OpenAttempts()
        # By id: key, architecture, parameters, MACs.
        self._known: dict[int, tuple[str, Architecture, int, int]] = {}
        # Charges of all other attempts by phase, in the order in which the phases began; kept only
        # while this process is the one that writes attempts.
        self._ended: dict[str, float] | None = None

    @classmethod
    def create(cls, address: Address, *, clock: Callable[[], float] | None = None) -> Record:
        """Start a record in a new file or schema.

        Args:
            clock: Seconds since 1970; None for a `SteadyClock`.

        Raises:
            ValueError: If it exists, or cannot be made.
        """
        return cls(create_database(address), clock or SteadyClock())

    @classmethod
    def open(
        cls,
        address: Address,
        *,
        clock: Callable[[], float] | None = None,
        read_only: bool = False,
    ) -> Record:
        """Open a record, to read it or to go on with it; `close_orphans` comes before new attempts.

        Args:
            clock: See `create`.
            read_only: Only look: nothing is written, not even beside the record.

        Raises:
            ValueError: If it is missing, no record, or one of another schema version.
        """
        return cls(open_database(address, read_only=read_only), clock or SteadyClock())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. Attempts that are open stay so, as after a crash."""
        with self._lock:
            self._database.close()
            self._ended = None

    @property
    def waited_seconds(self) -> float:
        """For how long calls have waited in all for a database that was away."""
        return self._database.waited_seconds

    def working_time(self, clock: Callable[[], float] | None = None) -> float:
        """Tell the time of a clock (the monotonic one) less what calls waited for the database.

        Paces and patience are measured by it: nobody is slow because the database was away.
        """
        return (clock or time.monotonic)() - self.waited_seconds

    def check_writable(self) -> None:
        """Write something that changes nothing.

        Raises:
            RefusedError: If that is refused.
        """
        with self.together():
            self._execute("UPDATE meta SET value = value WHERE key = 'schema_version'")

    def claim(self) -> None:
        """Make this process the one that works on the run, until it ends or closes the record.

        Raises:
            ValueError: If another process is that one.
        """
        with self._lock:
            if not self._database.claimed:
                self._database.claim()
                self.set_meta(ENTERED, self._clock())

    def last_seen(self) -> float | None:
        """Tell when a process last worked on the run; None while one does."""
        with self._lock:
            if self._database.is_claimed():
                return None
            query = "SELECT max(coalesce(ended, last_seen)) FROM attempts"
            ((last,),) = self._database.execute(query)
            return max(float(last or 0.0), self.get_meta(ENTERED) or 0.0)

    def silent_seconds(self, now: float) -> float:
        """Tell for how long no process has worked on the run at ``now``, of the wall clock."""
        last = self.last_seen()
        return 0.0 if last is None else max(now - last, 0.0)

    def get_meta(self, key: str) -> Any:
        """Return the JSON value that was set last, or None."""
        rows = self._execute("SELECT value FROM meta WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    def set_meta(self, key: str, value: Any) -> None:
        """Set a JSON value under a key, over an older one."""
        with self.together():
            self._execute(
                "INSERT INTO meta VALUES (?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, json.dumps(value)),
            )

    def add_architecture(self, architecture: Architecture, *, params: int, macs: int) -> int:
        """Return the id of the architecture, which it got when it was first added."""
        key = architecture.key
        with self.together():
            self._execute(
                f"INSERT INTO architectures VALUES ({next_id('architectures')}, ?, ?, ?, ?) "
                "ON CONFLICT (key) DO NOTHING",
                (key, json.dumps(architecture.to_dict()), params, macs),
            )
            rows = self._execute("SELECT id FROM architectures WHERE key = ?", (key,))
            return int(rows[0][0])

    def architecture(self, architecture_id: int) -> Architecture:
        """Return the architecture with an id; ValueError if there is none."""
        return self._get_known(architecture_id)[1]

    def architecture_id(self, key: str) -> int | None:
        """Return the id of the architecture with a key, or None."""
        rows = self._execute("SELECT id FROM architectures WHERE key = ?", (key,))
        return int(rows[0][0]) if rows else None

    def add_trial(self, architecture_id: int, *, fidelity: str, seed: int, origin: str) -> int:
        """Return the id of the trial of an architecture, fidelity and seed; a new one waits."""
        self._get_known(architecture_id)
        with self.together():
            self._execute(
                f"INSERT INTO trials VALUES ({next_id('trials')}, ?, ?, ?, ?, 'waiting', NULL) "
                "ON CONFLICT (architecture_id, fidelity, seed) DO NOTHING",
                (architecture_id, fidelity, seed, origin),
            )
            query = "SELECT id FROM trials WHERE (architecture_id, fidelity, seed) = (?, ?, ?)"
            return int(self._execute(query, (architecture_id, fidelity, seed))[0][0])

    def retry(self, trial_id: int) -> None:
        """Let a trial that has failed wait again; any other stays as it is."""
        with self.together():
            statement = "UPDATE trials SET state = 'waiting' WHERE id = ? AND state = 'failed'"
            self._execute(statement, (trial_id,))

    def withdraw(self, trial_id: int) -> None:
        """Take a trial back that is not wanted any more; what it has cost stays in the ledger.

        Raises:
            ValueError: If it does not wait: it has a result, or is under way.
        """
        with self.together():
            rows = self._execute("SELECT state FROM trials WHERE id = ?", (trial_id,))
            if rows != [("waiting",)]:
                raise ValueError(
                    f"Only a trial that waits can be taken back; trial {trial_id} is "
                    f"{rows[0][0] if rows else 'unknown'}."
                )
            self._execute("UPDATE attempts SET trial_id = NULL WHERE trial_id = ?", (trial_id,))
            self._execute("DELETE FROM trials WHERE id = ?", (trial_id,))

    def start_attempt(self, phase: str, *, devices: float, trial_id: int | None = None) -> int:
        """Begin to charge for ``devices`` devices; a trial that waits is running from now on.

        Raises:
            ValueError: If the trial does not wait, or another process writes this record.
        """
        if not 0 <= devices < math.inf:
            raise ValueError(f"An attempt holds a finite number >= 0 of devices, got {devices}.")
        with self._lock:
            self.claim()
            with self.together():
                if trial_id is not None:
                    self._begin_trial(trial_id)
                now = self._clock()
                ((attempt_id, number),) = self._execute(NEXT_ATTEMPT, (trial_id,))
                self._execute(
                    "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL)",
                    (attempt_id, phase, trial_id, number, devices, now, now),
                )
            attempt = OpenAttempt(phase, trial_id, devices, started=now, last_seen=now)
            self._live.add(attempt_id, attempt)
            if self._ended is not None:
                self._ended.setdefault(phase, 0.0)
            return int(attempt_id)

    def restart_attempt(self, attempt_id: int) -> None:
        """Charge an open attempt from now on: until now it waited for its devices.

        Raises:
            ValueError: If the attempt is not open or not ours.
        """
        with self._lock:
            with self.together():
                attempt = self._open_attempt(attempt_id)
                now = max(self._clock(), attempt.last_seen)
                self._execute(
                    "UPDATE attempts SET started = ?, last_seen = ? WHERE id = ?",
                    (now, now, attempt_id),
                )
            self._live.restart(attempt_id, now)

    def finish_attempt(
        self,
        attempt_id: int,
        *,
        outcome: AttemptOutcome,
        measured: Measured | None = None,
        cause: str | None = None,
        was_held: bool = True,
    ) -> None:
        """End an attempt now and, in the same transaction, settle its trial.

        Args:
            attempt_id: An open attempt that this process started.
            outcome: ``done`` and ``failed`` are final; after ``interrupted`` and ``lost`` the trial
                waits again.
            measured: By a trial's ``done`` attempt; nothing else has values.
            cause: Why there is no result; ``failed`` needs it.
            was_held: Whether it had its devices; if not, it ends when it began and is not charged.

        Raises:
            ValueError: If the attempt is not open or not ours, or the outcome lacks what it needs.
        """
        if outcome not in get_args(AttemptOutcome):
            raise ValueError(f"Outcomes are {', '.join(STATE_AFTER)}; got {outcome!r}.")
        if outcome == "failed" and not cause:
            raise ValueError("A failed attempt needs its cause.")
        cause = cause and cause.replace("\0", "")  # PostgreSQL's texts have no zero bytes
        with self._lock:
            with self.together():
                attempt = self._open_attempt(attempt_id)
                needs_values = outcome == "done" and attempt.trial_id is not None
                if needs_values != bool(measured):
                    raise ValueError(
                        "A trial's attempt that is done has values, and nothing else has; got "
                        f"{outcome=}, trial_id={attempt.trial_id}, {measured=}."
                    )
                now = self._clock()
                ended = max(attempt.last_seen, now) if was_held else attempt.started
                self._execute(
                    "UPDATE attempts SET ended = ?, outcome = ?, cause = ? WHERE id = ?",
                    (ended, outcome, cause, attempt_id),
                )
                if attempt.trial_id is not None:
                    result = _result_text(measured) if measured else None
                    self._execute(
                        "UPDATE trials SET state = ?, result = ? WHERE id = ?",
                        (STATE_AFTER[outcome], result, attempt.trial_id),
                    )
            self._live.remove(attempt_id)
            if self._ended is not None and was_held:
                self._ended[attempt.phase] += attempt.charge(now)

    def heartbeat(self) -> None:
        """Mark the open attempts of this process as alive now."""
        with self._lock:
            with self.together():
                now = self._clock()
                self._execute(
                    "UPDATE attempts SET last_seen = ? WHERE last_seen < ? AND ended IS NULL "
                    f"AND id IN {self._live_ids()}",
                    (now, now),
                )
            self._live.see(now)

    def close_orphans(self) -> tuple[Trial, ...]:
        """End the attempts that another process left open, when they were last seen.

        Returns:
            Their trials, which wait again.

        Raises:
            ValueError: If that process still runs.
        """
        with self._lock:
            self.claim()
            orphans = f"ended IS NULL AND id NOT IN {self._live_ids()}"
            with self.together():
                rows = self._execute(
                    f"SELECT trial_id FROM attempts WHERE {orphans} AND trial_id IS NOT NULL "
                    "ORDER BY trial_id"
                )
                for row in rows:
                    self._execute("UPDATE trials SET state = 'waiting' WHERE id = ?", row)
                self._execute(
                    "UPDATE attempts SET ended = last_seen, outcome = 'interrupted', "
                    f"cause = 'the process that ran it ended' WHERE {orphans}"
                )
            self._ended = None
            return tuple(self.trial(trial_id) for (trial_id,) in rows)

    def spent(self, phases: Collection[str] | None = None) -> float:
        """Sum the device-seconds that are charged to some phases, or to all."""
        by_phase = self.spent_by_phase()
        return math.fsum(
            seconds for phase, seconds in by_phase.items() if phases is None or phase in phases
        )

    def spent_by_phase(self) -> dict[str, float]:
        """Sum the device-seconds of each phase, in the order in which the phases began."""
        with self._lock:
            ended = self._ended
            if ended is None:
                # Phases all of whose attempts are ours and open count as well, with nothing.
                others = f"CASE WHEN id IN {self._live_ids()} THEN 0 ELSE {CHARGE} END"
                query = f"SELECT phase, sum({others}) FROM attempts GROUP BY phase ORDER BY min(id)"
                ended = {phase: float(seconds) for phase, seconds in self._execute(query)}
            self._ended = ended if self._database.claimed else None
            spent = dict(ended)
            for phase, charge in self._live.charges(self._clock()).items():
                spent[phase] += charge
            return spent

    def count_lost(self, trial_id: int) -> int:
        """Count the attempts at a trial that the cluster lost; interruptions do not count."""
        query = "SELECT count(*) FROM attempts WHERE trial_id = ? AND outcome = 'lost'"
        return int(self._execute(query, (trial_id,))[0][0])

    def causes(self, trial_id: int) -> tuple[str, ...]:
        """List why attempts at a trial gave no result, where that was said, the first one first."""
        query = "SELECT cause FROM attempts WHERE trial_id = ? AND cause IS NOT NULL"
        rows = self._execute(f"{query} ORDER BY number", (trial_id,))
        return tuple(cause for (cause,) in rows)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make all calls of the block one transaction: they are durable when it ends, or void.

        After an error inside, the attempts that it began or ended are not to be used.
        """
        with self._lock:
            if self._database.in_transaction:  # in a larger block
                yield
                return
            try:
                self._database.begin()
                yield
                self._database.commit()
            except BaseException:
                self._database.rollback()
                self._forget_undone()
                raise

    def charges(self, phases: Collection[str]) -> tuple[tuple[float, float, float], ...]:
        """List (started, ended, devices) of the ended attempts of some phases, by their start."""
        rows = self._execute(
            "SELECT started, ended, devices, phase FROM attempts WHERE ended IS NOT NULL "
            "AND devices > 0 ORDER BY started"
        )
        return tuple(
            (start, end, devices) for start, end, devices, phase in rows if phase in phases
        )

    def ledger(self) -> Rows:
        """List every attempt, the first one first, as the columns `LEDGER_COLUMNS`."""
        return self._execute(LEDGER)

    def trials(
        self, *, fidelity: str | None = None, state: State | None = None
    ) -> tuple[Trial, ...]:
        """List trials in the order in which they were added."""
        rows = self._execute(
            f"{TRIALS} WHERE (:fidelity IS NULL OR fidelity = :fidelity) "
            f"AND (:state IS NULL OR state = :state) {BY_TRIAL}",
            {"fidelity": fidelity, "state": state},
        )
        return tuple(map(self._to_trial, rows))

    def trial(self, trial_id: int) -> Trial:
        """Return the trial with an id; ValueError if there is none."""
        rows = self._execute(f"{TRIALS} WHERE trials.id = ? {BY_TRIAL}", (trial_id,))
        if not rows:
            raise ValueError(f"{self._database} has no trial {trial_id}.")
        return self._to_trial(rows[0])

    def _to_trial(self, row: tuple[Any, ...]) -> Trial:
        (trial_id, architecture_id, fidelity, seed, origin, state, result) = row[:7]
        (seconds, num_attempts, ended, cause) = row[7:]
        key, architecture, params, macs = self._get_known(architecture_id)
        return Trial(
            id=trial_id,
            architecture_id=architecture_id,
            key=key,
            architecture=architecture,
            params=params,
            macs=macs,
            fidelity=fidelity,
            seed=seed,
            origin=origin,
            state=state,
            measured=Measured.from_json(json.loads(result) if result else {}),
            cause=cause,
            seconds=seconds + (self._unseen(trial_id) if state == "running" else 0.0),
            num_attempts=num_attempts,
            finished=ended if state in ("done", "failed") else None,
        )

    def _get_known(self, architecture_id: int) -> tuple[str, Architecture, int, int]:
        if architecture_id not in self._known:
            query = "SELECT key, description, params, macs FROM architectures WHERE id = ?"
            rows = self._execute(query, (architecture_id,))
            if not rows:
                raise ValueError(
                    f"{self._database} has no architecture {architecture_id}. `search pareto RUN` "
                    "lists the ids of networks."
                )
            key, description, params, macs = rows[0]
            architecture = Architecture.from_dict(json.loads(description))
            self._known[architecture_id] = (key, architecture, params, macs)
        return self._known[architecture_id]

    def _unseen(self, trial_id: int) -> float:
        """Sum what our attempt at a trial is charged since it was last seen."""
        with self._lock:
            now = self._clock()
            ours = [one for one in self._live.values() if one.trial_id == trial_id]
            return math.fsum(one.charge(now) - one.charge(one.last_seen) for one in ours)

    def _begin_trial(self, trial_id: int) -> None:
        rows = self._execute("SELECT state FROM trials WHERE id = ?", (trial_id,))
        state = rows[0][0] if rows else "unknown"
        if state != "waiting":
            raise ValueError(
                f"Only a trial that waits can be started; trial {trial_id} is {state}."
            )
        self._execute("UPDATE trials SET state = 'running' WHERE id = ?", (trial_id,))

    def _open_attempt(self, attempt_id: int) -> OpenAttempt:
        """Return an open attempt of ours."""
        rows = self._execute("SELECT outcome FROM attempts WHERE id = ?", (attempt_id,))
        if not rows:
            raise ValueError(f"{self._database} has no attempt {attempt_id}.")
        if rows[0][0] is not None:
            raise ValueError(
                f"Attempt {attempt_id} has ended already, with outcome {rows[0][0]!r}."
            )
        if attempt_id not in self._live:
            raise ValueError(
                f"Attempt {attempt_id} belongs to a process that ended; close_orphans() settles it."
            )
        return self._live[attempt_id]

    def _live_ids(self) -> str:
        """Write the ids of the attempts that this process holds; no attempt has id 0."""
        return f"({', '.join(map(str, (0, *self._live)))})"

    def _execute(self, statement: str, values: Values = ()) -> Rows:
        with self._lock:
            return self._database.execute(statement, values)

    def _forget_undone(self) -> None:
        rows = self._execute("SELECT id FROM attempts WHERE ended IS NULL")
        self._live.keep({attempt_id for (attempt_id,) in rows})
        self._ended = None


def _result_text(measured: Measured) -> str:
    values = measured.to_json()
    if not all(map(math.isfinite, values.values())):
        raise ValueError(
            f"A trial's values must be finite, got {values}. Finish it as failed, with a cause."
        )
    return json.dumps({name: float(value) for name, value in values.items()})
