"""The folder of a finished graft, made without training anything: its scores are made up."""

from __future__ import annotations

from pathlib import Path

import torch

from search.grafting import single_networks
from search.record import Measured
from search.record.record import Record
from search.run_folder import RunSettings, own_run, write_teacher
from search.run_folder.state import DONE, RunState
from searchspace.architecture import Architecture, Stage
from searchspace.cost import count
from searchspace.deployment import Deployment
from searchspace.graft_space import (
    Replacement,
    graft_space,
    replacements,
    with_replacements,
)
from searchspace.latency_table import Latency, LatencyTable, macro_of_space, parts_of
from searchspace.mixers import NoMixer, WindowAttention
from supernet.data import prepare_data
from supernet.grafting import LibraryTrainer, hidden_order, part_keys
from supernet.network import build_subnet
from supernet.training import digest_of
from tests.tiny_data import changed
from tests.tiny_run import plan_of_minutes

WINDOW = WindowAttention(window_size=4, num_heads=2)
TEACHER = Architecture(
    img_size=32,
    patch_size=4,
    num_classes=10,
    stages=(Stage(dim=16, mixers=(WINDOW,) * 2, mlp_ratio=2), Stage(dim=32, mixers=(WINDOW,))),
)
IMAGES = 200.0


def made_up_score(one: Replacement) -> float:
    """The later a block is, the dearer its replacement; nothing is dearer than another mixer."""
    place = 1 + 2 * one.stage + one.block
    kind = 0.3 if isinstance(one.mixer, NoMixer) else 0.1
    return place * (kind if one.mixer is not None else 0.2 / (1 + one.mlp_ratio))


def write_graft(folder: Path) -> Path:
    """Write a finished graft of `TEACHER`, all of whose parts are scored, and some couples."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    state = build_subnet(TEACHER).state_dict()
    about = {"name": "a teacher", "fingerprint": digest_of(state), "class_names": []}
    about |= {"mean": [0.5] * 3, "std": [0.3] * 3}
    write_teacher(folder / "teacher", TEACHER, state, about)
    settings = RunSettings(
        data="digits",
        budget="10cpu-minutes",
        strategy="graft",
        graft_from="a teacher",
        teacher=str(folder / "teacher"),
        img_size=32,
        command="search run --from a-teacher --budget 10cpu-minutes --out graft",
    )
    (folder / "space.yaml").write_text("", encoding="utf-8")
    with Record.create(folder / "record.db") as record:
        record.set_meta("settings", settings.to_dict())
        state = RunState(record)
        state.phase, state.plan = DONE, plan_of_minutes()
        for network in single_networks(graft_space(TEACHER), TEACHER):
            kl = sum(made_up_score(one) for one in replacements(TEACHER, network))
            add_judged(record, network, kl)
    return folder


def write_learned_graft(folder: Path) -> Path:
    """Write a finished graft whose parts have taken one step, with the digits."""
    write_graft(folder)
    data = prepare_data("digits", img_size=32, folder=folder / "data")
    with own_run(folder) as run:
        teacher = build_subnet(TEACHER)
        assert run.teacher is not None
        teacher.load_state_dict(run.teacher.state())
        trainer = LibraryTrainer(
            teacher,
            part_keys(run.space(), TEACHER),
            run.as_taught(data),
            changed("quick", batch_size=8),
            total_steps=1,
            seed=0,
            order=hidden_order(teacher.eval(), [torch.randn(2, 3, 32, 32)]),
        )
        trainer.run(1)
        trainer.save(folder / "library" / "0")
        state = RunState(run.record)
        state.library, state.library_done = (1, 1), 1
    return folder


def add_judged(record: Record, network: Architecture, kl: float) -> int:
    """Add a network that was judged as it is, worse by its KL."""
    correct = round(IMAGES * (0.9 - 0.2 * kl))
    values = Measured(top1=100 * correct / IMAGES, correct=correct, total=IMAGES, kl=kl)
    return add_measured(record, network, values)


def add_measured(record: Record, network: Architecture, measured: Measured) -> int:
    """Add a network that was judged as it is; return its id."""
    cost = count(network)
    number = record.add_architecture(network, params=cost.params, macs=cost.macs)
    trial = record.add_trial(number, fidelity="supernet", seed=0, origin="score")
    attempt = record.start_attempt("score", devices=0, trial_id=trial)
    record.finish_attempt(attempt, outcome="done", measured=measured)
    return number


def write_table(path: Path) -> Path:
    """Write the table of a device on which a block takes a time of its own, by its name."""
    space = graft_space(TEACHER)
    parts = dict.fromkeys(parts_of(TEACHER))
    for index, stage in enumerate(TEACHER.stages):
        for block in range(stage.depth):
            for mixer in space.mixers_of(index, block):
                for ratio in space.stages[index].ratios_of(block):
                    both = [Replacement(stage=index, block=block, mixer=mixer)]
                    both += [Replacement(stage=index, block=block, mlp_ratio=ratio)]
                    parts |= dict.fromkeys(parts_of(with_replacements(TEACHER, both)))
    table = LatencyTable(
        macro=macro_of_space(space),
        deployment=Deployment(),
        device="another",
        threads=1,
        versions="",
        measured_on="2026-01-01",
        parts={part: Latency(*(0.1 * (1 + len(str(part)) % 7),) * 3) for part in parts},
    )
    table.save(path)
    return path
