"""Ctrl-C and SIGTERM while Ray's workers are busy: an orderly end, and a run that resumes where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.processes import Zygote, committed, differences, is_alive, label_arguments, start, workers_of
from tests.faults.steps import UNIT_STEPS, Fault

_HINT = "the same command resumes"


def _until(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _heard(process: subprocess.Popen[str], words: str) -> str:
    """What the command says on stderr up to the line with these words."""
    assert process.stderr
    heard = ""
    while words not in heard:
        line = process.stderr.readline()
        assert line, f"it ended without {words!r}: {heard}"
        heard += line
    return heard


def test_ctrl_c_finishes_the_part_at_work_and_sigterm_abandons_it(
    tmp_path: Path, zygote: Zygote, five: Path, checkpoints: Path, uninterrupted: Path
):
    """Without Ray, each at the run's second unit."""
    arguments = label_arguments(tmp_path / "run", five, checkpoints, "--workers", "0")
    for deed, nth, done in (("terminate", 2, 1), ("interrupt", 1, 2)):
        ended = zygote.run(arguments, Fault(UNIT_STEPS["images: its last file is written"], deed, nth=nth))
        assert ended.status == 130, ended.output
        assert ("Finishing the parts at work" in ended.output) == (deed == "interrupt")
        assert _HINT in ended.output
        assert "Traceback" not in ended.output
        assert len(committed(tmp_path / "run")) == done
    assert zygote.run(arguments).status == 0
    assert differences(tmp_path / "run", uninterrupted) == []


@pytest.mark.campaign
def test_ctrl_c_finishes_the_parts_at_work_says_how_to_go_on_and_that_is_so(
    tmp_path: Path, zygote: Zygote, five: Path, checkpoints: Path, uninterrupted: Path
):
    arguments = label_arguments(tmp_path / "run", five, checkpoints)
    process = start([*arguments, "--workers", "2"])
    _until(lambda: list(tmp_path.glob("run/columns/images/*.zarr")), process)
    os.killpg(process.pid, signal.SIGINT)
    told, messages = process.communicate(timeout=240)
    assert process.returncode == 130, messages
    assert "Finishing the parts at work" in messages
    assert _HINT in messages
    assert "Traceback" not in told + messages
    done = len(committed(tmp_path / "run"))
    assert f"{done} of 9 parts are committed, {done} of them by this command" in told
    assert 1 <= done < 9
    assert len(list(tmp_path.glob("run/columns/*/*.zarr"))) == done  # nothing was abandoned
    assert zygote.run([*arguments, "--workers", "0"]).status == 0
    assert differences(tmp_path / "run", uninterrupted) == []


@pytest.mark.campaign
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_or_sigterm_abandons_at_once_even_a_worker_that_hangs(
    tmp_path: Path, zygote: Zygote, five: Path, checkpoints: Path, uninterrupted: Path, second: signal.Signals
):
    arguments = label_arguments(tmp_path / "run", five, checkpoints)
    hang = Fault(UNIT_STEPS["images: its last file is written"], "sleep")
    process = start([*arguments, "--workers", "2"], [hang], tmp_path / "marks")
    _until(lambda: list((tmp_path / "marks").iterdir()), process)
    workers = workers_of(process.pid)
    heard = ""
    if second == signal.SIGINT:
        os.killpg(process.pid, signal.SIGINT)
        heard = _heard(process, "Finishing the parts at work")
        assert set(workers) & set(workers_of(process.pid))  # the first Ctrl-C, to all in the foreground, spares who is at work
    os.killpg(process.pid, second)
    _, messages = process.communicate(timeout=240)
    left = [pid for pid in workers if is_alive(pid)]
    assert process.returncode == 130, heard + messages
    assert _HINT in messages
    assert "Traceback" not in heard + messages
    assert "SIGTERM received" not in heard + messages  # Ray's own handler
    assert workers
    assert left == []
    assert zygote.run([*arguments, "--workers", "0"]).status == 0
    assert differences(tmp_path / "run", uninterrupted) == []
