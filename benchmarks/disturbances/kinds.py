"""The kinds of trouble, and what must hold after each."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.disturbances.scene import FailedError, Scene, check_words
from benchmarks.disturbances.undisturbed import (
    BUDGET,
    RESUME,
    START,
    Known,
    numbers_of,
    retrain_words,
    retrained_of,
)
from benchmarks.faults.one_process import TIMES


def kills(scene: Scene, known: Known) -> str:
    """kill -9 or a signal at random moments of a run, up to three times."""
    for _ in range(scene.rng.randint(1, 3)):
        begun = (scene.run / "record.db").exists()
        number = scene.rng.choice((9, 9, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        at = scene.rng.randrange(1, known.events["run"])
        end = scene.call(*(RESUME if begun else START), at=at, trouble=stop_by(number))
        scene.told.append(f"{signal.Signals(number).name}@{at}:{end.status}")
        check_words(end, RESUME)
    how = finish(scene, known)
    if how == "message":
        raise FailedError(f"a killed run does not go on: {scene.call(*RESUME).text}")
    return how


def kills_of_retraining(scene: Scene, known: Known) -> str:
    """kill -9 or a signal at random moments of a retraining, up to three times."""
    take(scene, known, "done")
    words = retrain_words(known)
    for _ in range(scene.rng.randint(1, 3)):
        number = scene.rng.choice((9, 9, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        at = scene.rng.randrange(1, known.events["retrain"])
        end = scene.call(*words, at=at, trouble=stop_by(number))
        scene.told.append(f"{signal.Signals(number).name}@{at}:{end.status}")
        check_words(end, words)
    how = finish_retraining(scene, known)
    if how == "message":
        raise FailedError(f"a killed retraining does not go on: {scene.call(*words).text}")
    check_numbers(scene, known, exact=True)
    return how


def two_drivers(scene: Scene, known: Known) -> str:
    """A second driver comes at a random moment of the first, which waits for it."""
    state = scene.rng.choice(("none", "half", "done", "half retrained"))
    if state != "none":
        take(scene, known, state)
    words = retrain_words(known) if "retrained" in state else START if state == "none" else RESUME
    kind = "retrain" if "retrained" in state else "run"
    second_words = scene.rng.choice((words, RESUME, words))
    scene.told.append(f"{state}: {second_words[0]} {second_words[1]}")
    at = scene.rng.randrange(1, max(known.events[kind] // scene.rng.choice((1, 1, 20)), 2))
    first = scene.start(*words, at=at, trouble=stop_by(signal.SIGSTOP))
    was_stopped = first.stopped()
    second = scene.call(*second_words)
    if was_stopped:
        first.go_on()
    ends = {"first": first.wait(), "second": second}
    for name, end in ends.items():
        check_words(end, (name, *words))
        scene.told.append(f"{name} {end.status}")
        if end.status not in (0, 1, 2):
            raise FailedError(f"the {name} driver ended with {end.status}: {end.text[-500:]}")
    if ends["first"].status == 2 and second.status == 2 and not (scene.run / "record.db").exists():
        raise FailedError(f"neither of two drivers began: {ends['first'].text} {second.text}")
    if "retrained" in state:
        return finish_retraining(scene, known)
    return finish(scene, known)


def links(scene: Scene, known: Known) -> str:
    """A part of the run is a link to something else of the user's."""
    take(scene, known, scene.rng.choice(("half", "done", "half retrained", "retrained")))
    parts = [path for path in sorted(scene.run.rglob("*")) if not path.is_symlink()]
    # What the program makes for a while, and removes.
    for name in ("trials/1", "supernet/promote", "ray/promote", "retrain/meeting-1", "trials"):
        parts.append(scene.run / name)
    part = scene.rng.choice(parts)
    target = scene.root / "documents"
    if part.is_file():
        target = target / "thesis.txt"
    elif part.name == "data":
        target = target / "data"
    scene.told.append(f"{part.relative_to(scene.run)} -> {target.name}")
    if part.is_dir():
        shutil.rmtree(part)
    part.unlink(missing_ok=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.symlink_to(target)
    return look_at_all(scene, known)


def clocks(scene: Scene, known: Known) -> str:
    """Somebody sets the wall clock, while the run is at work."""
    jump = scene.rng.choice((-1, 1)) * 10 ** scene.rng.uniform(1, 7)

    def set_clock() -> None:
        TIMES.jumped += jump

    at = scene.rng.randrange(1, known.events["run"])
    scene.told.append(f"{jump:+.0f} s@{at}")
    end = scene.call(*START, at=at, trouble=set_clock)
    check_words(end, START)
    if end.status != 0:
        raise FailedError(f"a run whose clock was set ended with {end.status}: {end.text[-800:]}")
    check_numbers(scene, known, exact=False)
    check_ledger(scene)
    scene.checked("status", "RUN")
    return "done"


def disks(scene: Scene, known: Known) -> str:
    """The disk is full at some size of the run's folder; then there is space again."""
    kilobytes = scene.rng.randint(16, 1_200)
    of_retraining = scene.rng.random() < 0.3
    words: tuple[str, ...] = START
    scene.place = "disk/run"
    with small_disk(scene.root / "disk", kilobytes * 1024) as enlarge:
        if of_retraining:
            needed = sum(f.stat().st_size for f in known.folders["done"].rglob("*"))
            enlarge(needed + needed // 2 + kilobytes * 1024)
            shutil.copytree(known.folders["done"], scene.run, dirs_exist_ok=True)
            words = retrain_words(known)
        scene.told.append(f"{kilobytes} kB, {words[0]}")
        end = scene.call(*words)
        check_words(end, words)
        if end.status < 0:
            raise FailedError(f"a full disk ended {words[0]} by signal {-end.status}")
        scene.told.append(f"{end.status}")
        enlarge(64 * 2**20)
        how = finish_retraining(scene, known) if of_retraining else finish(scene, known)
        if how == "message":
            raise FailedError(f"does not go on with space: {scene.call(*RESUME).text}")
    return "done" if end.status == 0 else how


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """Mount a small disk at a folder; what is yielded makes it larger."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise NotImplementedError("this machine lets nobody mount a small disk")

    def enlarge(size: int) -> None:
        options = ["-o", f"remount,size={size}"]
        subprocess.run(["mount", *options, str(folder)], check=True, capture_output=True)

    try:
        yield enlarge
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def bits(scene: Scene, known: Known) -> str:
    """Bits are flipped at random places of a file of the run."""
    take(scene, known, scene.rng.choice(("half", "done", "retrained", "half retrained")))
    files = [path for path in sorted(scene.run.rglob("*")) if path.stat().st_size]
    file = scene.rng.choice([path for path in files if path.is_file()])
    content = bytearray(file.read_bytes())
    reach = scene.rng.choice((64, 4096, len(content)))
    for _ in range(scene.rng.choice((1, 1, 8))):
        content[scene.rng.randrange(min(reach, len(content)))] ^= 1 << scene.rng.randrange(8)
    file.write_bytes(content)
    scene.told.append(str(file.relative_to(scene.run)))
    return look_at_all(scene, known)


def take(scene: Scene, known: Known, state: str) -> None:
    """Begin from a kept run."""
    scene.told.append(state)
    shutil.copytree(known.folders[state], scene.run, symlinks=True)


def stop_by(number: int) -> Callable[[], None]:
    """Send a signal to this process."""
    return lambda: os.kill(os.getpid(), number)


def finish(scene: Scene, known: Known, *, exact: bool = False) -> str:
    """Go on with a run to its end; tell whether that is a message or a result."""
    begun = (scene.run / "record.db").exists()
    end = scene.checked(*RESUME) if begun else scene.checked(*START)
    if end.status == 2:
        # One of the two commands takes it up.
        end = scene.checked(*START) if begun else scene.checked(*RESUME)
    if end.status == 2:
        return "message"
    check_numbers(scene, known, exact=exact)
    check_ledger(scene, least=0.0)
    scene.checked("status", "RUN")
    scene.checked("pareto", "RUN", "--json")
    return "resumed"


def finish_retraining(scene: Scene, known: Known) -> str:
    """Go on with a retraining to its end, and compare it with the undisturbed one."""
    end = scene.checked(*retrain_words(known))
    if end.status == 2:
        return "message"
    if retrained_of(scene) != known.numbers["retrained"]:
        raise FailedError(f"retrained: {retrained_of(scene)}, not {known.numbers['retrained']}")
    return "resumed"


def look_at_all(scene: Scene, known: Known) -> str:
    """Use a damaged run in every way: what is told is right, or there is a message."""
    ends = [scene.checked("status", "RUN"), scene.checked("pareto", "RUN", "--json", may=(0, 1))]
    ends.append(scene.checked(*RESUME, may=(0, 1)))
    ends.append(scene.checked(*retrain_words(known), may=(0, 1)))
    ends.append(scene.checked("pareto", "RUN", "--json", may=(0, 1)))
    if ends[2].status == 0:
        check_numbers(scene, known, exact=False)
    if ends[3].status == 0 and retrained_of(scene) != known.numbers["retrained"]:
        raise FailedError(f"retrained: {retrained_of(scene)}, not {known.numbers['retrained']}")
    return "message" if any(end.status for end in ends) else "done"


def check_numbers(scene: Scene, known: Known, *, exact: bool) -> None:
    """Compare a finished run with the undisturbed one, network by network.

    Which networks were judged, and how long the shared weights were trained, may depend on how
    much of the budget the trouble took; a network that was trained alone gets what it always gets.
    """
    found = numbers_of(scene)
    for name, numbers in found.items():
        expected = known.numbers.get(name, numbers) if exact or " train-" in name else numbers
        if tuple(expected) != tuple(numbers):
            raise FailedError(f"{name}: {numbers}, undisturbed {expected}")
    if not any(" train-" in name for name in found):
        raise FailedError("no network was trained alone")


def check_ledger(scene: Scene, *, least: float = 0.85) -> None:
    """See that the budget is used and kept."""
    from search.plan import PHASES
    from search.record.record import Record

    with Record.open(scene.run / "record.db") as record:
        spent = record.spent(PHASES)
    if not least * BUDGET <= spent <= 1.06 * BUDGET:
        raise FailedError(f"{spent:.1f} of {BUDGET:.0f} device-seconds are charged")


KINDS: dict[str, Callable[[Scene, Known], str]] = {
    "kills": kills,
    "retrain-kills": kills_of_retraining,
    "drivers": two_drivers,
    "links": links,
    "clocks": clocks,
    "disks": disks,
    "bits": bits,
}
