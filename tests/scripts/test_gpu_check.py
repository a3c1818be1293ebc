"""The script for a machine with a GPU works, as far as a machine without one can say."""

from __future__ import annotations

import sys

import pytest
import torch

from scripts import gpu_check


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *options])
    return gpu_check.main()


@pytest.mark.timeout(600)
def test_a_dry_run_goes_through_what_is_quick(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = "environment,batches,supernet,training,operators,group,latency,jpegs,poison,search"
    assert run(monkeypatch, "--dry-run", "--only", quick) == 0
    said = capsys.readouterr().out
    assert "FAILED" not in said
    assert "batches are equal: True" in said
    assert "to write, equal: True" in said
    assert "gone on with: weights differ by 0e+00" in said


@pytest.mark.slow
def test_a_dry_run_goes_through_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--dry-run") == 0
    assert set(gpu_check.SECTIONS) <= set(capsys.readouterr().out.splitlines())


def test_a_section_that_fails_is_told_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: gpu_check.Check) -> None:
        raise ValueError("no such thing")

    sections = {"fail": fail, "environment": gpu_check.environment}
    monkeypatch.setattr(gpu_check, "SECTIONS", sections)
    assert run(monkeypatch, "--dry-run", "--only", "fail,environment") == 1
    said = capsys.readouterr().out
    assert "no such thing" in said
    assert f"torch {torch.__version__}" in said


def test_what_cannot_be_checked_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, words in (((), "--dry-run"), (("--dry-run", "--only", "x"), "got x")):
        with pytest.raises(SystemExit) as ended:
            run(monkeypatch, *options)
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
