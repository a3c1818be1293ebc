"""``search run``: the main path from images and a budget to a Pareto front, top to bottom.

A run is one folder. Its record (`search.record.record`) is the truth; everything here can be killed
at any moment and is entered again from the top: each phase asks the record what is left to do.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from rich.console import Console

from search.cluster import Cluster
from search.phases.climb import climb
from search.phases.finish import finish
from search.phases.grafting import graft
from search.phases.horizon import train_on
from search.phases.judging import judge_proposals
from search.phases.measure import measure
from search.phases.promote import promote
from search.phases.session import Interrupted, Session
from search.phases.supernet import measure_and_train_supernet
from search.phases.trust import choose_trust_set, train_trust_set
from search.plan import HORIZON
from search.record import DatabaseLostError, Heartbeat
from search.run_folder import DONE, GRAFT, RunFolder, StorageError, is_disk_full
from search.scheduling import BudgetSpent, Work, last_line
from search.terminal import ProgressView, StopSignals
from search.tracking import RunCurves, open_tracker
from search.workers import work_of

FULL_DISK = "a full disk"
NO_STORAGE = "a storage that does not answer"
NO_DATABASE = "a database that does not answer"


def run_search(
    run: RunFolder,
    console: Console,
    *,
    ray_address: str | None = None,
    track: str | None = None,
    work: Work | None = None,
) -> str | None:
    """Do what is left to do of a run.

    Args:
        run: An open run; see `search.run_folder`.
        console: For what the user sees.
        ray_address: Of a cluster to join; None starts Ray on this machine.
        track: A tracker that gets its curves, one of `search.tracking.TRACKERS`.
        work: What the devices do; None takes that of the run's task.

    Returns:
        What stopped it (the name of a signal, `FULL_DISK`, `NO_STORAGE` or `NO_DATABASE`), or None
        when it is done.
    """
    budget = run.settings.parsed_budget
    for line in run.mend_data().lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if images := run.settings.unlabelled_line:
        console.print(f"unlabelled: {images}", highlight=False, markup=False, soft_wrap=True)
    with (
        Cluster(device=budget.device, address=ray_address) as cluster,
        Heartbeat(run.record),
        _curves(run, track),
        StopSignals() as stop,
        ProgressView(
            console,
            budget_seconds=budget.amount_seconds,
            devices=cluster.devices,
            device=budget.device,
        ) as view,
    ):
        session = Session(run, cluster, stop, view, work or work_of(run.settings))
        try:
            run.share_data()
            prepare_nodes(session)
            try:
                search_with(session)
            except BudgetSpent as spent:
                view.say(str(spent))
            run.state.phase = DONE
        except Interrupted:
            pass
        except StorageError as error:
            # From a worker, Ray puts the whole traceback before it.
            console.print(last_line(str(error)), highlight=False, soft_wrap=True)
            return NO_STORAGE
        except DatabaseLostError as error:
            console.print(str(error), highlight=False, markup=False, soft_wrap=True)
            return NO_DATABASE
        except Exception as error:
            if not is_disk_full(error, run.folder):
                raise
            console.print(f"{error}\nFree some space.", highlight=False, soft_wrap=True)
            return FULL_DISK
        return stop.requested


def _curves(run: RunFolder, track: str | None) -> AbstractContextManager[object]:
    if track is None:
        return nullcontext()
    settings = run.settings
    shown = {
        name: str(getattr(settings, name))
        for name in ("data", "budget", "space", "sampler", "strategy", "objectives", "seed")
    }
    tracker = open_tracker(
        track, identity=run.state.tracking_id, title=run.folder.name, settings=shown
    )
    return RunCurves(run.record, tracker, is_done=lambda: run.state.is_done)


def prepare_nodes(session: Session) -> None:
    """Let every node compile what it needs: nothing is charged before."""
    if session.work.prepare is not None and session.spent() < session.budget.amount_seconds:
        session.cluster.on_each_node(session.work.prepare, while_waiting=session.check_stop)


def search_with(session: Session) -> None:
    """Take the phases of the run's strategy, one after the other; see `search.plan.SHARES`."""
    strategy = session.settings.strategy
    if strategy == GRAFT:
        graft(session)
        return
    if strategy == "proxy":
        plan = measure(session)
        climb(session, plan, "search")
        plan = session.state.plan or plan  # trainings may have been slower than it had them
        train_on(session, plan, choose_trust_set(session, plan.num_horizon))
        return
    plan = measure_and_train_supernet(session) if strategy == "supernet" else measure(session)
    plan, trust = train_trust_set(session, plan)
    plan = session.revise(plan, after="trust")
    train_on(session, plan, trust)
    plan = session.revise(plan, after=HORIZON)
    judge_proposals(session, plan, trust)
    plan = session.revise(plan, after="search")
    promote(session, plan)
    if strategy == "supernet":
        finish(session, plan)
