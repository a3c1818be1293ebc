"""The cluster: a connection to Ray, its devices, and actors that hold them.

Ray holds no truth of the run; if the driver dies, a new one starts over with the same record.
Besides this module only `search.cluster.crew` (judges) and `search.cluster.tune_trials` (trials)
import Ray, and nothing imports them before a run starts.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayActorError, RayError, RayTaskError
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from search.budget import count_cores
from search.scheduling import START_SECONDS, AwakeClock, last_line

logger = logging.getLogger(__name__)

# How long the others' errors may come before the news that one of the group has died.
NEWS_OF_DEATH_SECONDS = 45.0
# A process that was killed keeps its device for a part of a second.
RELEASE_SECONDS = 3.0
CONNECT_SECONDS = 10.0
KILLERS = 32
# A call of a dead actor fails at once; a busy one leaves it waiting.
ROLL_CALL_SECONDS = 0.2
LOOPBACK = "127.0.0.1"


class WorkerLostError(Exception):
    """A worker died or does not answer; what it did since the last checkpoint is lost."""


@dataclass(frozen=True, slots=True)
class Place:
    """Devices that were asked for together.

    Attributes:
        group: Ray's placement group.
        threads: CPU threads at each.
    """

    group: PlacementGroup
    threads: int

    @property
    def is_held(self) -> bool:
        """Whether they were given."""
        return bool(placement_group_table(self.group)["state"] == "CREATED")


class Cluster:
    """A connection to Ray; use it as a context manager.

    A cluster that is started here is this program's alone: it listens on the loopback address only,
    and has a token of its own, whatever the environment says; see `_private_cluster`.

    Args:
        device: What one worker holds: a core (``cpu``) or a GPU (``gpu``).
        address: Address of a cluster; None starts Ray on this machine.

    Raises:
        ValueError: If there is no such cluster, or it has no such device.
    """

    def __init__(self, *, device: str, address: str | None = None) -> None:
        self._closing = ExitStack()
        self._folder: Path | None = None
        try:
            if address is None:
                self._folder = self._closing.enter_context(_private_cluster())
            self._closing.callback(ray.shutdown)
            self._connect(device, address)
        except BaseException:
            self._closing.close()
            raise

    def _connect(self, device: str, address: str | None) -> None:
        if address is not None:
            _check_answers(address)
        try:
            ray.init(
                # Not None: that would join any cluster that was started on this machine.
                address=address or "local",
                num_cpus=None if address else count_cores(),
                _node_ip_address=None if address else LOOPBACK,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
        except (AuthenticationError, ConnectionError) as error:
            raise ValueError(
                f"The cluster at {address} does not let us in: {last_line(str(error))} Those of "
                "`ray start` want a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a "
                "file with it."
            ) from error
        self.resource = {"cpu": "CPU", "gpu": "GPU"}[device]
        if self._alive < 1:
            raise _no_device(device)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    @property
    def meeting_place(self) -> str | None:
        """Where a group of workers finds each other: a file of this machine, new at every look.

        None on several machines, where the first worker must listen on an address.
        """
        return f"file://{self._folder}/group-{uuid.uuid4().hex}" if self._folder else None

    @property
    def devices(self) -> int:
        """Count the devices of the nodes that are alive now; it may be 0 for a while."""
        return self._alive

    @property
    def _alive(self) -> int:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return int(resources.get(self.resource, 0))

    @property
    def free(self) -> int:
        """Count the devices that nothing holds; what Ray says may be a second old.

        The device of a node that has just died is not free, and it counts among `devices` until
        Ray has given the node up: what is started for it would wait, and be charged for nothing.
        """
        resources: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        return int(resources.get(self.resource, 0))

    @property
    def reserved(self) -> int:
        """Count the devices that placement groups of this program hold.

        Ray Tune reserves the devices of a trial with a group of its own, before its processes start
        and until after they have ended, whatever becomes of them.
        """
        job = ray.get_runtime_context().get_job_id()
        held = [
            bundle.get(self.resource, 0)
            for name, one in placement_group_table().items()
            if name.endswith(job) and one["state"] == "CREATED"
            for bundle in one["bundles"].values()
        ]
        return int(sum(held))

    def nodes(self) -> set[str]:
        """Return the ids of the nodes that are alive now."""
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]

    @property
    def node_devices(self) -> int:
        """Count the devices of the largest node that is alive: what one task can hold."""
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        held = [node["Resources"].get(self.resource, 0) for node in nodes if node["Alive"]]
        return int(max(held, default=0)) or 1

    @property
    def threads(self) -> int:
        """CPU threads of a worker. On cores there is one worker a core, because many small
        operators synchronise badly over threads, and worse on a busy machine."""
        return 1 if self.resource == "CPU" else 4

    @property
    def needs(self) -> dict[str, int]:
        """What Ray must reserve for one worker.

        Unless told otherwise, Ray reserves a core for a GPU's worker too, and lets those wait
        silently for which a node has no core.
        """
        return {"num_cpus": 1} if self.resource == "CPU" else {"num_cpus": 0, "num_gpus": 1}

    def start_actor(self, worker: type, job: Any) -> Any:
        """Start an actor that holds a device; it is not restarted by Ray."""
        remote: Any = ray.remote(worker).options(**self.needs, max_restarts=0)
        return remote.remote(job, threads=self.threads)

    def end_actors(self, actors: list[Any]) -> None:
        """Kill actors and wait until Ray has their devices back, or for a moment."""
        before, holding = self.free, len(actors) - _count_dead(actors)
        kill_aside(actors)
        deadline = time.monotonic() + RELEASE_SECONDS
        # A node that has died meanwhile gives nothing back.
        while time.monotonic() < deadline and self.free < min(before + holding, self._alive):
            time.sleep(0.02)

    @contextmanager
    def actors(self, worker: type, job: Any, count: int) -> Iterator[list[Any]]:
        """Hold ``count`` actors, one a device, until the block ends."""
        actors = [self.start_actor(worker, job) for _ in range(count)]
        try:
            yield actors
        finally:
            self.end_actors(actors)

    def reserve(self, devices: int, *, threads: int) -> Place:
        """Ask for devices (or so many times ``threads`` cores) that are given all at once or not.

        Who asks for one after the other holds some of them and waits for the others, for ever where
        a node is gone.
        """
        needs = {"CPU": threads} if self.resource == "CPU" else {"CPU": 0, self.resource: 1}
        return Place(placement_group([needs] * devices, strategy="PACK"), threads)

    def submit(self, function: Callable[..., Any], *arguments: Any, place: Place) -> Any:
        """Start a function on one device of a place and return Ray's reference."""
        needs = {"num_cpus": place.threads} if self.resource == "CPU" else self.needs
        return (
            ray.remote(function)
            .options(
                **needs,
                max_retries=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(place.group),
            )
            .remote(*arguments)
        )

    def release(self, place: Place) -> None:
        """Give the devices of a place back, and end what works there."""
        remove_placement_group(place.group)

    def on_each_node(
        self, function: Callable[[], None], *, while_waiting: Callable[[], None]
    ) -> None:
        """Run a function once on every node, holding no device; where it fails, it is not missed.

        Args:
            while_waiting: Called about once a second.
        """
        pending = [
            ray.remote(function)
            .options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote()
            for node in self.nodes()
        ]
        deadline = time.monotonic() + START_SECONDS
        while pending and time.monotonic() < deadline:
            for reference in ray.wait(pending, num_returns=1, timeout=1.0)[0]:
                pending.remove(reference)
                try:
                    ray.get(reference)
                except (RayTaskError, RayError) as error:
                    logger.warning("A node could not prepare: %s", last_line(str(error)))
            while_waiting()


def check_devices(device: str, address: str | None) -> None:
    """Look whether there can be a cluster with such devices, before anything is made for it.

    Raises:
        ValueError: If there is none.
    """
    if address is not None:
        _check_answers(address)
    elif device == "gpu":
        import torch

        if not torch.cuda.device_count():
            raise _no_device(device)


def kill_aside(actors: list[Any]) -> None:
    """Kill actors without waiting: where a node has just died, a kill takes seconds."""
    killers = ThreadPoolExecutor(max_workers=KILLERS)
    for actor in actors:
        killers.submit(ray.kill, actor)
    killers.shutdown(wait=False)


def call(
    actor: Any,
    method: str,
    *arguments: Any,
    while_waiting: Callable[[], None],
    limit_seconds: float = START_SECONDS,
) -> Any:
    """Call an actor's method and wait for it, calling ``while_waiting`` about once a second.

    Raises:
        WorkerLostError: If it died, or gave no answer within ``limit_seconds``.
    """
    (result,) = call_all(
        [actor], method, *arguments, while_waiting=while_waiting, limit_seconds=limit_seconds
    )
    return result


def call_all(
    actors: list[Any],
    method: str,
    *arguments: Any,
    while_waiting: Callable[[], None],
    limit_seconds: float = START_SECONDS,
) -> list[Any]:
    """Call the same method of several actors and wait for all of them; see `call`."""
    return call_each(
        actors,
        method,
        [arguments] * len(actors),
        while_waiting=while_waiting,
        limit_seconds=limit_seconds,
    )


def call_each(
    actors: list[Any],
    method: str,
    arguments: Sequence[tuple[Any, ...]],
    *,
    while_waiting: Callable[[], None],
    limit_seconds: float = START_SECONDS,
) -> list[Any]:
    """Call the same method of several actors at once, each with its own arguments; see `call`."""
    pending = [
        getattr(actor, method).remote(*own) for actor, own in zip(actors, arguments, strict=True)
    ]
    return _gather(pending, while_waiting=while_waiting, limit_seconds=limit_seconds)


def form_group(
    actors: list[Any], *, meeting_place: str | None, while_waiting: Callable[[], None]
) -> None:
    """Let supernet workers find each other, so that they train together; see `call`.

    Args:
        meeting_place: See `Cluster.meeting_place`; None lets the first of them name an address.
    """
    if len(actors) > 1:
        address = meeting_place
        if address is None:
            # What the machine itself takes for its address may be its loopback's.
            host = call(actors[0], "__ray_call__", _host_of, while_waiting=while_waiting)
            address = call(actors[0], "address", host, while_waiting=while_waiting)
        places = [(address, rank, len(actors)) for rank in range(len(actors))]
        call_each(actors, "join", places, while_waiting=while_waiting)


def _host_of(worker: object) -> str:
    """Return the address under which the other nodes of the cluster know a worker's."""
    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return host


def take_finished(pending: list[Any]) -> list[tuple[Any, Any, str | None]]:
    """Wait up to a second; return (reference, result, None) or (reference, None, cause)."""
    finished: list[tuple[Any, Any, str | None]] = []
    for reference in ray.wait(pending, num_returns=1, timeout=1.0)[0]:
        try:
            finished.append((reference, ray.get(reference), None))
        except (RayTaskError, RayError) as error:
            finished.append((reference, None, last_line(str(error))))
    return finished


@contextmanager
def _private_cluster() -> Iterator[Path]:
    """Make what Ray starts in this block reachable for this program alone.

    Ray reads all of this from the environment, which the processes that it starts inherit:

    - a token in a file that only this user can read. Without one anybody who reaches a port may run
      code, and ``RAY_AUTH_MODE=disabled`` would mean that here as well;
    - the loopback address. Ray takes ``127.0.0.1`` for the address of the network card, except
      where clusters of several machines are switched off, as they are on macOS;
    - the same for the groups of torch's processes.

    Ray gives way to all else on a machine: its workers are 15 nicer than what started it. Beside
    one busy process a budget, which is device time held, would then buy next to nothing. Here they
    are as nice as the user made this program, unless ``RAY_worker_niceness`` says otherwise.

    Yields:
        A folder of this user, which is removed at the end.
    """
    folder = Path(tempfile.mkdtemp(prefix="mixer-search-"))  # mode 0700
    token, loopback = folder / "token", "lo0" if sys.platform == "darwin" else "lo"
    with open(
        os.open(token, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii"
    ) as file:
        file.write(secrets.token_hex(32))
    before = dict(os.environ)
    may_be_several = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        ray_constants.RAY_WORKER_NICENESS: before.get(ray_constants.RAY_WORKER_NICENESS, "0"),
    }
    ray_constants.ENABLE_RAY_CLUSTER = False
    _read_environment()
    try:
        yield folder
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = may_be_several
        os.environ.clear()
        os.environ.update(before)
        _read_environment()
        shutil.rmtree(folder, ignore_errors=True)


def _read_environment() -> None:
    """Let Ray, which has read it when it was imported, read the environment again."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _no_device(device: str) -> ValueError:
    return ValueError(
        f"The budget counts {device} time, and this cluster has no {device.upper()}. "
        "Give a cpu budget, or join a cluster that has one with --ray-address."
    )


def _check_answers(address: str) -> None:
    """Refuse an address where nothing listens; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if address != "auto":
        if not host or "/" in address or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(
                f"A Ray cluster is HOST:PORT, or auto on one of its nodes, got {address!r}. Give "
                "--ray-address what `ray start --head` printed."
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise ValueError(
                f"No cluster answers at {address} ({error}). Start its head with `ray start "
                "--head`, and give the address that it prints to --ray-address."
            ) from error


def _count_dead(actors: list[Any]) -> int:
    """Count the actors that have died, whose devices Ray has back already."""
    if not actors:
        return 0
    answers = [actor.__ray_ready__.remote() for actor in actors]
    done, _ = ray.wait(answers, num_returns=len(answers), timeout=ROLL_CALL_SECONDS)
    dead = 0
    for answer in done:
        try:
            ray.get(answer)
        except RayError:
            dead += 1
    return dead


def _gather(
    pending: list[Any], *, while_waiting: Callable[[], None], limit_seconds: float
) -> list[Any]:
    # Nearly still while `while_waiting` waits for a database that is away, or this process is
    # stopped: the workers' time is their own.
    clock = AwakeClock(time.monotonic)
    deadline = clock() + limit_seconds
    waiting = pending
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=1.0)
        if waiting:
            more, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            done += more
        try:
            ray.get(done)  # an error of one ends the call; the others may wait for it for ever
        except RayActorError as error:
            raise WorkerLostError(last_line(str(error))) from error
        except RayTaskError:
            _raise_if_one_died(waiting, while_waiting)
            raise
        while_waiting()
        if waiting and clock() > deadline:
            raise WorkerLostError(
                f"{len(waiting)} of {len(pending)} workers gave no answer in {limit_seconds:.0f} s"
            )
    return list(ray.get(pending))


def _raise_if_one_died(waiting: list[Any], while_waiting: Callable[[], None]) -> None:
    """Find out whether an error only says that a peer's connection was closed."""
    deadline = time.monotonic() + NEWS_OF_DEATH_SECONDS
    while waiting and time.monotonic() < deadline:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=1.0)
        for reference in done:
            try:
                ray.get(reference)
            except RayActorError as error:
                raise WorkerLostError(last_line(str(error))) from error
            except RayTaskError:
                continue
        while_waiting()
