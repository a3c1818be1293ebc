"""The SLURM script of docs/guide/clusters.md, run with stand-ins for SLURM's programs.

``srun`` starts its command on this machine, as a node of one core; ``scontrol`` names the nodes. As
SLURM does, the test signals the script alone, and kills what it has left when it ends.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from search.record.record import Record
from tests.search.cluster.test_ray_start import (
    JOB_SECONDS,
    SCRATCH,
    STOP_SECONDS,
    free_port,
    spent,
)
from tests.search.test_run import ENVIRONMENT, SPACE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
SCONTROL = """#!/bin/sh
test "$*" = "show hostnames node[1-2]" && printf '127.0.0.1\\nnode2\\n'
"""
SRUN = f"""#!/bin/sh
while :; do
    case "$1" in
        --nodes=1|--ntasks=1|--exclude=127.0.0.1) shift ;;
        -w) test "$2" = 127.0.0.1 || exit 2; shift 2 ;;
        -*) echo "srun: unknown option $1" >&2; exit 2 ;;
        *) break ;;
    esac
done
case "$*" in
    *--head*) exec "$@" --num-cpus 1 --temp-dir {SCRATCH} ;;
    *) exec "$@" --num-cpus 1 ;;
esac
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Write the script of the documentation with this test's places, port and budget."""
    text = (ROOT / "docs/guide/clusters.md").read_text(encoding="utf-8")
    section = text.partition("## SLURM")[2]
    (found,) = re.findall(r"```\n(#!/bin/bash\n.*?)```", section.partition("\n## ")[0], re.DOTALL)
    asked = "--budget 50gpu-days --data /shared/data"
    assert asked in found
    (tmp_path / "tiny.yaml").write_text(SPACE)
    mine = f"--budget {JOB_SECONDS}cpu-seconds --space {tmp_path}/tiny.yaml"
    script = tmp_path / "job.sh"
    script.write_text(
        found.replace(asked, mine)
        .replace("/shared", str(tmp_path))
        .replace("6379", str(free_port()))
    )
    (tmp_path / "ray_token").write_text(secrets.token_hex(32))
    (tmp_path / "runs").mkdir()
    for name, program in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(program)
        (tmp_path / "bin" / name).chmod(0o755)
    return script


@contextmanager
def job(script: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the script as a job on two nodes; whatever it leaves ends with it."""
    folder = script.parent
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2"}
    with (folder / "job.log").open("ab") as log:
        process = subprocess.Popen(
            ["bash", str(script)],
            env={**ENVIRONMENT, **slurm, "PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                time.sleep(5)
            process.wait(10)


def test_a_job_that_is_told_to_end_stops_in_order_and_the_next_one_goes_on(script: Path) -> None:
    run, log = script.parent / "runs" / "a", script.parent / "job.log"
    with job(script) as process:
        deadline = time.monotonic() + 250
        while "trust" not in spent(run):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 130, log.read_text()
    with job(script) as process:
        assert process.wait(300) == 0, log.read_text()

    assert "on 2 cores" in log.read_text()
    with Record.open(run / "record.db") as record:
        assert record.spent() <= 1.01 * JOB_SECONDS + STOP_SECONDS
        assert record.trials(state="done")
