"""Make trouble for runs and retrainings, by seed, and see what becomes of them.

``python benchmarks/trouble.py [--seeds N] [--first S] [--only KIND ...]``

Each seed draws a kind of trouble, a run (not begun, half done, done, with a retraining half done or
done) and a place, and goes on until the run is done. The commands are those of a user; devices are
local and the clock runs ahead (`benchmarks/faults/one_process.py`). A seed ends as ``done`` (the
trouble was not to be seen), ``resumed`` (the next command went on to the end) or ``message``
(status 2 and one message). It fails where something outside the run's folder has changed, a number
is not that of the undisturbed run, the budget is passed, a command shows a traceback or hangs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "COLUMNS": "160"}

from benchmarks.faults import one_process
from benchmarks.faults.one_process import TIMES, Counter

BUDGET = 160.0
LIMIT_SECONDS = 300.0
SPACE = """
name: tiny
img_size: 8
patch_size: 4
mlp_ratio: [1, 2, 3]
stages: [{dim: 8, depth: 2}]
mixers:
  depthwise_conv: {kernel_size: [3, 5]}
  window_attention: {window_size: 2, num_heads: [1, 2, 4]}
"""


class FailedError(Exception):
    """What must never happen has happened."""


@dataclass(frozen=True, slots=True)
class End:
    """How a command ended: its status (negative: the signal), and what it printed."""

    status: int
    text: str
    num_events: int


@dataclass(slots=True)
class Scene:
    """A folder of its own for one seed: ``run`` in it, and ``outside`` that nobody may touch."""

    root: Path
    rng: random.Random
    told: list[str] = field(default_factory=list)
    place: str = "run"

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.root / self.place

    def start(
        self, *words: str, at: int | None = None, trouble: Callable[[], None] = lambda: None
    ) -> Child:
        """Start a command in the scene; ``RUN`` stands for the run's folder."""
        named = [self.place if word == "RUN" else word for word in words]
        return Child(self.root, self.run, named, at, trouble)

    def call(self, *words: str, **more: Any) -> End:
        """Run a command to its end."""
        return self.start(*words, **more).wait()

    def checked(self, *words: str, may: tuple[int, ...] = (0,)) -> End:
        """Run a command that ends in order: with one of the statuses, or one message."""
        end = self.call(*words)
        check_words(end, words)
        if end.status not in (*may, 2):
            raise FailedError(f"{' '.join(words)} ended with {end.status}: {end.text[-600:]}")
        self.told.append(f"{end.status}")
        return end


class Child:
    """A command that runs in a forked child."""

    def __init__(
        self,
        root: Path,
        run: Path,
        words: list[str],
        at: int | None,
        trouble: Callable[[], None],
    ) -> None:
        self.out = root / f"out-{random.SystemRandom().getrandbits(40)}.txt"
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be_the_child(root, words, self.out, Counter(run, at, trouble))

    def stopped(self) -> bool:
        """Wait until it stops itself (True) or has ended."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return True
        self._status = status
        return False

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def wait(self) -> End:
        """Wait for its end."""
        status = getattr(self, "_status", None)
        deadline = time.perf_counter() + LIMIT_SECONDS
        while status is None:
            done, found = os.waitpid(self.pid, os.WNOHANG)
            if done:
                status = found
            elif time.perf_counter() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise FailedError(f"no end within {LIMIT_SECONDS:.0f} s: {_read(self.out)[-500:]}")
            else:
                time.sleep(0.01)
        text = _read(self.out)
        self.out.unlink(missing_ok=True)
        events = re.findall(r"^events (\d+)$", text, re.MULTILINE)
        text = re.sub(r"^events \d+\n", "", text, flags=re.MULTILINE)
        code = os.waitstatus_to_exitcode(status)
        return End(code, text, int(events[-1]) if events else 0)


def _be_the_child(root: Path, words: list[str], out: Path, counter: Counter) -> None:
    log = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(log, number)
    os.chdir(root)
    status: int | str | None = 3
    try:
        one_process.command(words, counter)
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os.write(log, f"\nevents {counter.number}\n".encode())
        os._exit(status if isinstance(status, int) else 0 if status is None else 1)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="backslashreplace") if path.exists() else ""


def check_words(end: End, words: tuple[str, ...]) -> None:
    """Refuse tracebacks."""
    if "Traceback (most recent call last)" in end.text:
        raise FailedError(f"{' '.join(words)}: a traceback: {end.text[-1500:]}")


@dataclass(frozen=True, slots=True)
class Known:
    """The undisturbed run: folders to begin from, and its numbers.

    Attributes:
        folders: By state: ``half``, ``done``, ``retrained`` and ``half retrained``.
        numbers: Of the finished run, see `numbers_of`.
        events: How many each command has.
        chosen: The network that is retrained.
    """

    folders: dict[str, Path]
    numbers: dict[str, Any]
    events: dict[str, int]
    chosen: str


START = ("run", "--budget", f"{BUDGET:.0f}cpu-seconds", "--data", "images", "--out", "RUN")
START += ("--space", "tiny.yaml", "--recipe", "quick", "--sampler", "random")
RESUME = ("run", "--resume", "--out", "RUN")


def retrain_words(known: Known) -> tuple[str, ...]:
    """Return the command that retrains the chosen network."""
    return ("retrain", "RUN", "--arch", known.chosen, "--epochs", "3")


def prepare(root: Path) -> Known:
    """Make the undisturbed runs."""
    make_outside(root)
    scene = Scene(root, random.Random(0))
    folders, events = {}, {}

    def keep(state: str) -> None:
        folders[state] = root / f"kept-{state}"
        shutil.copytree(scene.run, folders[state], symlinks=True)

    first = _sound(scene.call(*START), START)
    events["run"] = first.num_events
    numbers = numbers_of(scene)
    members = json.loads(scene.call("pareto", "RUN", "--json").text)
    chosen = str(members[0]["id"])
    keep("done")
    known = Known(folders, numbers, events, chosen)
    words = retrain_words(known)
    second = _sound(scene.call(*words), words)
    events["retrain"] = second.num_events
    numbers |= {"retrained": retrained_of(scene)}
    keep("retrained")
    shutil.rmtree(scene.run)
    shutil.copytree(folders["done"], scene.run)
    scene.call(*words, at=second.num_events // 2, trouble=kill)
    keep("half retrained")
    shutil.rmtree(scene.run)
    scene.call(*START, at=first.num_events // 2, trouble=kill)
    keep("half")
    shutil.rmtree(scene.run)
    return known


def _sound(end: End, words: tuple[str, ...]) -> End:
    if end.status != 0 or "Traceback" in end.text:
        raise SystemExit(f"Without any trouble, {' '.join(words)} ended so: {end.text[-3000:]}")
    return end


def make_outside(root: Path) -> None:
    """Make what a user has beside the run: the images, the space, documents."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (root / "tiny.yaml").write_text(SPACE, encoding="utf-8")
    for pool, count in (("train", 20), ("test", 10)):
        for label in range(2):
            folder = root / "images" / pool / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 128, (8, 8, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    for name in ("thesis.txt", "photos/one.txt", "photos/two.txt", "data/images.npy"):
        path = root / "documents" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} {random.Random(name).random()}", encoding="utf-8")


def state_of(folder: Path) -> dict[str, str]:
    """Digest everything below a folder, without following links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def numbers_of(scene: Scene) -> dict[str, Any]:
    """Return what a search found: the accuracy of every network that was judged, by its name."""
    from search.record.record import Record

    with Record.open(scene.run / "record.db") as record:
        done = record.trials(state="done")
        return {
            f"{t.key} {t.fidelity} {t.seed}": (t.measured.correct, t.measured.total) for t in done
        }


def retrained_of(scene: Scene) -> dict[str, Any]:
    """Return what a retraining left: its accuracies, and a digest of its weights."""
    (out,) = (path.parent for path in (scene.run / "retrain").glob("*/result.json"))
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    return {"raw": result["raw"], "ema": result["ema"], "weights": weights}


def kill() -> None:
    """End as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop_by(number: int) -> Callable[[], None]:
    """Send a signal to this process."""
    return lambda: os.kill(os.getpid(), number)


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
    words = START
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


def take(scene: Scene, known: Known, state: str) -> None:
    """Begin from a kept run."""
    scene.told.append(state)
    shutil.copytree(known.folders[state], scene.run, symlinks=True)


KINDS: dict[str, Callable[[Scene, Known], str]] = {
    "kills": kills,
    "retrain-kills": kills_of_retraining,
    "drivers": two_drivers,
    "links": links,
    "clocks": clocks,
    "disks": disks,
    "bits": bits,
}


def one_seed(seed: int, kinds: list[str], known: Known, base: Path) -> tuple[str, str, str]:
    """Make one seed's trouble; return its kind, how it ended and what was told."""
    rng = random.Random(f"trouble/{seed}")
    kind = rng.choice(kinds)
    root = base / f"seed-{seed}"
    root.mkdir()
    for name in ("images", "documents"):
        shutil.copytree(base / "known" / name, root / name)
    shutil.copy(base / "known" / "tiny.yaml", root)
    scene = Scene(root, rng)
    before = {name: state_of(root / name) for name in ("images", "documents")}
    try:
        how = KINDS[kind](scene, known)
        for name, state in before.items():
            if state_of(root / name) != state:
                raise FailedError(f"{name} has changed")
        if strangers := {path.name for path in root.iterdir()} - {
            *before,
            "run",
            "disk",
            "tiny.yaml",
        }:
            raise FailedError(f"left outside of the run: {sorted(strangers)}")
    except FailedError as error:
        return kind, "FAILED", f"{', '.join(scene.told)}: {error}"
    except NotImplementedError as error:
        return kind, "left out", str(error)
    except Exception:
        return kind, "FAILED", f"{', '.join(scene.told)}: {traceback.format_exc()[-800:]}"
    shutil.rmtree(root)
    return kind, how, ", ".join(scene.told)


def main() -> int:
    """Make the trouble of all seeds; print a line for each, and a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--keep", type=Path, help="keep the folders of failed seeds here")
    arguments = parser.parse_args()
    one_process.install_time()
    _import_all()
    base = Path(tempfile.mkdtemp(prefix="trouble-")) if arguments.keep is None else arguments.keep
    (base / "known").mkdir(parents=True)
    known = prepare(base / "known")
    print(f"An undisturbed run has {known.events} places for trouble.", flush=True)
    table: Tally[tuple[str, str]] = Tally()
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        kind, how, told = one_seed(seed, arguments.only, known, base)
        table[kind, how] += 1
        print(f"{seed:4} {kind:14} {how:9} {told}", flush=True)
    if arguments.keep is None:
        shutil.rmtree(base)
    ends = ("done", "resumed", "message", "left out", "FAILED")
    print(f"\n{'':14}" + "".join(f"{end:>10}" for end in ends))
    for kind in arguments.only:
        print(f"{kind:14}" + "".join(f"{table[kind, end]:>10}" for end in ends))
    return 1 if any(table[kind, "FAILED"] for kind in arguments.only) else 0


def _import_all() -> None:
    """Have in this process what every command needs, so that a child starts in no time."""
    for name in (
        *("search.run", "search.report.closing", "search.retraining.queue", "tests.local_run"),
        *("search.cli.front_commands", "search.phases.planning", "search.sampling.guided_sampler"),
        *("matplotlib.figure", "plotly.graph_objects", "optuna.storages._rdb.storage", "ray.tune"),
        *("torch.utils.tensorboard", "search.front.query", "search.terminal.listings"),
    ):
        importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
