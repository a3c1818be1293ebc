"""`JudgeCrew`: warm judges, one a device, fed in batches; the dead and the hung are replaced."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from search.cluster.connection import Cluster, WorkerLostError, call, call_each, kill_aside
from search.record import Measured, Record
from search.scheduling import (
    START_SECONDS,
    AwakeClock,
    BudgetSpent,
    Judgement,
    Looks,
    Outcome,
    last_line,
    late_seconds,
)
from searchspace.architecture import Architecture

logger = logging.getLogger(__name__)

# A call to a judge is worth its cost when it lasts about so long.
BATCH_SECONDS = 0.2
MAX_BATCH = 32
# Batches at a judge: while it works on one, the next lies ready.
QUEUED = 2
# When the user stops, what is under way may end in this time.
STOP_SECONDS = 10.0
# A judge that takes so many times longer than expected, and at least so long, hangs.
HANG_FACTOR = 20.0
LEAST_LIMIT_SECONDS = 60.0
RECRUIT_EVERY_SECONDS = 5.0
RECRUIT_AGAIN_SECONDS = 0.5
LOOK_EVERY_SECONDS = 0.25
NODE_LEFT = "its node left the cluster"
SHOW_EVERY_SECONDS = 0.5
MAX_STILLBORN = 4
# More than any cluster has devices.
MOST_JUDGES = 2**20
PACE_SHARE = 0.2


class JudgementSource(Protocol):
    """Where judges get architectures from and bring their judgements to.

    Attributes:
        by: What they judge by, see `search.scheduling.judging.Judging`.
    """

    @property
    def by(self) -> str: ...

    def ask(self, count: int) -> list[Architecture]:
        """Hand out up to ``count``; none ends the phase."""

    def tell(self, judgements: Sequence[Judgement]) -> None:
        """Take results."""

    def should_stop(self) -> bool:
        """Tell whether the user asked to stop."""


@dataclass(slots=True)
class _Batch:
    architectures: list[Architecture]
    alone: bool = False  # of a suspect: nothing else may be under way with it
    reference: Any = None  # of the call; None while it waits


@dataclass(slots=True, eq=False)
class _Judge:
    actor: Any
    attempt: int
    started: float
    greeting: Any
    ready: bool = False
    placed: bool = False  # whether Ray was seen to have given it a device
    node: str | None = None
    # The first is being worked on since ``busy_since``.
    queue: deque[_Batch] = field(default_factory=deque)
    busy_since: float = 0.0

    def send(self, by: str) -> None:
        """Send what may be sent.

        A process that ends takes the answers with it that were on their way. Who is to blame is
        certain only when the suspect was the one thing that it had.
        """
        sent: list[_Batch] = []
        for batch in self.queue:
            if sent and (batch.alone or sent[-1].alone):
                break
            if batch.reference is None:
                batch.reference = self.actor.judge.remote(batch.architectures, by)
            sent.append(batch)


class JudgeCrew:
    """Judges on up to ``most`` devices; each is charged from its start to its end.

    Args:
        cluster: Where; devices that join it later are used as well.
        worker: Class of the judges.
        job: What they are made with.
        record: For the charges.
        phase: What the time is charged to.
        most: Use at most so many devices; None takes all.
        pace_seconds: Expected seconds of one judgement.
        left: Device-seconds that may still be spent: no judge starts that does not fit, and at 0
            all end at once.
        start_seconds: Expected of a judge, until one was seen to start.
        budget_seconds: Of the run: no more than a share of it is left over because looks come late.

    Attributes:
        start_seconds: The longest that a judge took from its start until it was ready.
    """

    def __init__(
        self,
        cluster: Cluster,
        worker: type,
        *,
        job: Any,
        record: Record,
        phase: str,
        most: int | None,
        pace_seconds: float,
        left: Callable[[], float] = lambda: math.inf,
        start_seconds: float = 0.0,
        budget_seconds: float = math.inf,
    ) -> None:
        self._left, self._expected_start = left, start_seconds
        self._budget = budget_seconds
        self._cluster, self._worker, self._job = cluster, worker, job
        self._record, self._phase, self._most = record, phase, most
        self._pace = pace_seconds
        self.start_seconds = 0.0
        self._clock = AwakeClock(record.working_time)
        self._judges: list[_Judge] = []
        self._suspects: set[str] = set()  # lost with a judge: they are given out alone
        self._stillborn = 0
        self._recruited = self._shown = self._looked = -RECRUIT_EVERY_SECONDS

    def __len__(self) -> int:
        return len(self._judges)

    def call(self, method: str, *arguments: Any, while_waiting: Callable[[], None]) -> Any:
        """Call a method of some judge; of another one if that dies."""
        look = self._looking(while_waiting)
        while True:
            self._recruit()
            if not self._judges:
                if not self._affordable():
                    raise BudgetSpent(
                        "What is left of the budget is less than a judge takes to start; the run "
                        "ends here."
                    )
                time.sleep(1.0)
                while_waiting()
                continue
            judge = next((judge for judge in self._judges if judge.ready), self._judges[0])
            try:
                result = call(judge.actor, method, *arguments, while_waiting=look)
            except WorkerLostError as error:
                self._dismiss(judge, "lost", str(error))
            except BudgetSpent:
                self._dismiss(judge, "interrupted", "the budget was spent")
                raise
            else:
                self._greet(judge)
                return result

    def call_split(
        self, method: str, items: Sequence[Any], *, while_waiting: Callable[[], None]
    ) -> list[Any]:
        """Call a method with a part of a list at each judge: all of them are held meanwhile.

        Where one is lost, another one does all that was split.

        Returns:
            What the calls have returned.
        """
        found: list[Any] = []
        if items and not any(judge.ready for judge in self._judges):
            # Those that start now are ready when one of them has done something.
            found.append(self.call(method, items[:1], while_waiting=while_waiting))
            items = items[1:]
        self._greet_started()
        judges = [judge for judge in self._judges if judge.ready][: len(items)]
        if len(judges) > 1:
            parts = [(items[number :: len(judges)],) for number in range(len(judges))]
            actors, look = [judge.actor for judge in judges], self._looking(while_waiting)
            try:
                return found + call_each(actors, method, parts, while_waiting=look)
            except WorkerLostError as error:
                logger.warning("A judge was lost: %s", error)
        if items:
            found.append(self.call(method, items, while_waiting=while_waiting))
        return found

    def _looking(self, while_waiting: Callable[[], None]) -> Callable[[], None]:
        """Look after the judges, too, while a call is waited for."""

        def look() -> None:
            self._now()
            self._see_placed()
            while_waiting()

        return look

    def _greet_started(self) -> None:
        """Take note of judges that have become ready, where nobody has listened to them."""
        starting = {judge.greeting: judge for judge in self._judges if judge.node is None}
        if not starting:
            return
        done, _ = ray.wait(list(starting), num_returns=len(starting), timeout=0)
        for greeting in done:
            with suppress(RayError):  # it is told again to who asks for more
                starting[greeting].node = ray.get(greeting)
                self._greet(starting[greeting])

    def stream(self, source: JudgementSource, while_waiting: Callable[[], None]) -> None:
        """Keep every judge busy until the source has no more, then finish the rest.

        What a judge held when it died is told as lost; what it hung on alone has failed.
        """
        asking, stop_at, looks = True, float("inf"), Looks(self._now)
        while asking or any(judge.queue for judge in self._judges):
            self._recruit()
            if not self._judges and not self._affordable():
                return
            asking = asking and self._hand_out(source)
            self._collect(source)
            self._dismiss_hung(source)
            self._dismiss_dead(source)
            if source.should_stop():
                stop_at = min(stop_at, time.monotonic() + STOP_SECONDS)
            late = late_seconds(
                looks.seconds(), devices=len(self._judges), budget_seconds=self._budget
            )
            is_spent = self._left() <= late
            if time.monotonic() > stop_at or is_spent:
                asking = asking and not is_spent
                held = [self._dismiss(judge, "interrupted", "stopped") for judge in [*self._judges]]
                source.tell([judgement for judgements in held for judgement in judgements])
            if time.monotonic() - self._shown > SHOW_EVERY_SECONDS:
                self._shown = time.monotonic()
                while_waiting()

    def dismiss_all(self, outcome: str) -> None:
        """End all judges and their charges, first of those that are gone already."""
        for judge in self._gone():
            self._end(judge, "lost", NODE_LEFT)
        self._cluster.end_actors([judge.actor for judge in self._judges])
        for judge in list(self._judges):
            self._end(judge, outcome, None)

    def _recruit(self) -> None:
        now = time.monotonic()
        if now - self._recruited < RECRUIT_EVERY_SECONDS:
            return
        self._recruited = now
        devices = self._cluster.devices
        wanted = devices if self._most is None else min(devices, self._most)
        wanted = min(wanted, len(self._judges) + self._affordable())
        if wanted <= len(self._judges):
            return
        # A judge without a device would be charged for nothing. Those that start may have one that
        # Ray still calls free.
        free = self._cluster.free - sum(not judge.ready for judge in self._judges)
        if free < wanted - len(self._judges):
            self._recruited += RECRUIT_AGAIN_SECONDS - RECRUIT_EVERY_SECONDS
        for _ in range(min(wanted - len(self._judges), free)):
            attempt = self._record.start_attempt(self._phase, devices=1)
            actor = self._cluster.start_actor(self._worker, self._job)
            greeting = actor.__ray_call__.remote(_node_of)
            self._judges.append(_Judge(actor, attempt, self._now(), greeting))

    def _affordable(self) -> int:
        """Count the judges that may start now: what is left is enough until they are ready."""
        left, start = self._left(), max(self._expected_start, self.start_seconds)
        starting = sum(not judge.ready for judge in self._judges)
        if left <= 0:
            return 0
        return MOST_JUDGES if start * MOST_JUDGES < left else int(left / start) - starting

    def _hand_out(self, source: JudgementSource) -> bool:
        """Fill the judges' queues, the emptiest first; return whether there may be more."""
        size = max(1, min(int(BATCH_SECONDS / max(self._pace, 1e-6)), MAX_BATCH))
        for depth in range(QUEUED):
            for judge in self._judges:
                if not judge.ready or len(judge.queue) != depth:
                    continue
                batch = source.ask(size)
                if not batch:
                    return False
                suspects = [a for a in batch if a.key in self._suspects]
                others = [a for a in batch if a.key not in self._suspects]
                if not judge.queue:
                    judge.busy_since = self._now()
                judge.queue += [_Batch(others)] if others else []
                judge.queue += [_Batch([suspect], alone=True) for suspect in suspects]
                judge.send(source.by)
        return True

    def _collect(self, source: JudgementSource) -> None:
        heads = {judge.queue[0].reference: judge for judge in self._judges if judge.queue}
        heads |= {judge.greeting: judge for judge in self._judges if judge.node is None}
        if not heads:
            time.sleep(0.2)
            return
        done, rest = ray.wait(list(heads), num_returns=1, timeout=0.5)
        more, _ = ray.wait(rest, num_returns=len(rest), timeout=0) if rest else ([], [])
        judgements: list[Judgement] = []
        for reference in (*done, *more):
            judge = heads[reference]
            if judge not in self._judges:
                continue  # it has just been dismissed for its other answer
            try:
                answer = ray.get(reference)
            except RayActorError as error:
                judgements += self._dismiss(judge, "lost", last_line(str(error)))
                continue
            except RayTaskError as error:
                # Not the architecture's fault: a judge returns those errors.
                raise RuntimeError(f"A judge cannot work: {last_line(str(error))}") from error
            if reference == judge.greeting:
                self._greet(judge)
                judge.node = answer
                continue
            judgements += self._read(judge.queue.popleft().architectures, answer)
            judge.busy_since = self._now()
            judge.send(source.by)
        if judgements:
            source.tell(judgements)

    def _greet(self, judge: _Judge) -> None:
        if not judge.ready:
            self.start_seconds = max(self.start_seconds, self._now() - judge.started)
        judge.ready, self._stillborn = True, 0

    def _read(
        self, batch: list[Architecture], answer: list[tuple[Measured | None, str | None]]
    ) -> Iterator[Judgement]:
        for architecture, (measured, cause) in zip(batch, answer, strict=True):
            if measured is not None and measured.has("seconds"):
                self._pace += (measured.seconds - self._pace) * PACE_SHARE
            yield Judgement(
                architecture=architecture,
                outcome="failed" if cause else "done",
                measured=measured,
                cause=cause,
            )

    def _now(self) -> float:
        """Tell the time by a clock that stands still while nobody listens to judges.

        That is so while the record waits for its database, and while this process is stopped.
        """
        return self._clock()

    def _dismiss_hung(self, source: JudgementSource) -> None:
        now = self._now()
        for judge in list(self._judges):
            if judge.queue:
                batch = judge.queue[0].architectures
                limit = max(HANG_FACTOR * self._pace * len(batch), LEAST_LIMIT_SECONDS)
                if now - judge.busy_since > limit:
                    lost = self._dismiss(judge, "lost", f"no judgement within {limit:.0f} s")
                    # Of several it is not known which one hangs.
                    if len(batch) == 1:
                        lost[0] = Judgement(
                            architecture=batch[0], outcome="failed", cause=lost[0].cause
                        )
                    source.tell(lost)
            elif not judge.ready and now - judge.started > START_SECONDS:
                self._dismiss(judge, "lost", f"not ready within {START_SECONDS:.0f} s")

    def _dismiss_dead(self, source: JudgementSource) -> None:
        """Give up the judges of nodes that Ray has given up; their own errors may come later."""
        if time.monotonic() - self._looked < LOOK_EVERY_SECONDS:
            return
        self._looked = time.monotonic()
        self._see_placed()
        for judge in self._gone():
            source.tell(self._dismiss(judge, "lost", NODE_LEFT, is_gone=True))

    def _see_placed(self) -> None:
        """Take note of judges that have a device: Ray may have promised one of a dead node."""
        if all(judge.placed for judge in self._judges):
            return
        held = self._cluster.devices - self._cluster.free
        for judge in self._judges:
            judge.placed = judge.placed or judge.ready or held >= len(self._judges)

    def _gone(self) -> list[_Judge]:
        """Find the judges whose nodes left the cluster."""
        alive = self._cluster.nodes()
        gone = [
            judge for judge in self._judges if judge.node is not None and judge.node not in alive
        ]
        # One that was just starting has not said where.
        unplaced = [judge for judge in self._judges if judge.node is None]
        surplus = len(self._judges) - len(gone) - self._cluster.devices
        return gone + unplaced[: max(surplus, 0)]

    def _dismiss(
        self, judge: _Judge, outcome: Any, cause: str | None, *, is_gone: bool = False
    ) -> list[Judgement]:
        """Kill a judge and end its charge; return what it held.

        What it was working on is lost; what lay behind that has nothing to do with its end.
        """
        if is_gone:
            kill_aside([judge.actor])  # it holds no device that its kill would free
        else:
            ray.kill(judge.actor)
        self._end(judge, outcome, cause)
        self._recruited = -RECRUIT_EVERY_SECONDS
        if outcome == "lost" and not judge.ready:
            self._stillborn += 1
            if self._stillborn >= MAX_STILLBORN * max(self._cluster.devices, 1):
                raise RuntimeError(f"No judge can start: {cause}")
        ends: list[tuple[Architecture, Outcome]] = [
            (architecture, "not begun" if place else "lost")
            for place, batch in enumerate(judge.queue)
            for architecture in batch.architectures
        ]
        self._suspects |= {architecture.key for architecture, end in ends if end == "lost"}
        return [
            Judgement(architecture=architecture, outcome=end, cause=cause)
            for architecture, end in ends
        ]

    def _end(self, judge: _Judge, outcome: Any, cause: str | None) -> None:
        self._judges.remove(judge)
        was_held = judge.placed or judge.ready or outcome != "lost"
        self._record.finish_attempt(judge.attempt, outcome=outcome, cause=cause, was_held=was_held)


@contextmanager
def hold_judges(crew: JudgeCrew) -> Iterator[JudgeCrew]:
    """End a crew's judges and charges when the block ends, however it ends."""
    try:
        yield crew
    except BaseException:
        crew.dismiss_all("interrupted")
        raise
    crew.dismiss_all("done")


def _node_of(worker: object) -> str:
    """Name the node on which a judge lives; that it answers means that it is ready."""
    node: str = ray.get_runtime_context().get_node_id()
    return node
