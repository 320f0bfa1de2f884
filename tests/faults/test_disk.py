"""A full disk and a read-only one: a clear message, nothing torn, and the same run in the end once there is room."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from types import FunctionType

import pytest

import manifests
from pipeline.label.command import main
from tests.faults.processes import Ended, Zygote, content, differences, label_arguments

_NEW_USERS, _NEW_MOUNTS = 0x10000000, 0x00020000  # <linux/sched.h>
_NOT_PERMITTED = 77


def _own_mounts() -> None:
    """Mounts made from here on are this process's alone, and it may make them. Ends the process where that is forbidden."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_USERS | _NEW_MOUNTS):
        os._exit(_NOT_PERMITTED)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def label_on_a_small_disk(arguments: list[str], run: str, kept: str, size_kib: int) -> int:
    """In a process of its own: label until the disk is full, look at what is there, make room, label on, keep the run."""
    _own_mounts()
    Path(run).mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", run)
    print("first:", main(arguments), flush=True)
    print("damage:", manifests.verify(Path(run), deep=True), "litter:", manifests.clean(Path(run)), flush=True)
    print("committed:", len(manifests.committed_parts(Path(run), "images")), flush=True)
    _mount("-o", "remount,size=64m", run)
    print("second:", main(arguments), flush=True)
    shutil.copytree(run, kept)
    return 0


def label_on_a_read_only_disk(arguments: list[str], run: str) -> int:
    """In a process of its own: label in a folder that is mounted read-only."""
    _own_mounts()
    _mount("--bind", run, run)
    _mount("-o", "remount,bind,ro", run)
    return main(arguments)


def _call(zygote: Zygote, function: FunctionType, *arguments: object) -> Ended:
    ended = zygote.wait(zygote.start(arguments, call=f"{__name__}:{function.__name__}"))
    if ended.status == _NOT_PERMITTED:
        pytest.skip("this machine lets no process have mounts of its own")
    return ended


@pytest.mark.parametrize("size_kib", [20, 60, 140])
def test_a_disk_that_fills_up_ends_the_run_with_nothing_torn_and_it_resumes_when_there_is_room(
    tmp_path: Path, zygote: Zygote, five: Path, checkpoints: Path, uninterrupted: Path, size_kib: int
):
    run, kept = tmp_path / "run", tmp_path / "kept"
    arguments = label_arguments(run, five, checkpoints, "--workers", "0")
    ended = _call(zygote, label_on_a_small_disk, arguments, str(run), str(kept), size_kib)
    assert ended.status == 0, ended.output
    assert "first: 1" in ended.output
    assert "No space left on device" in ended.output
    assert "the same command resumes" in ended.output
    assert "Traceback" not in ended.output
    assert "damage: [] litter: []" in ended.output
    assert "second: 0" in ended.output
    assert differences(kept, uninterrupted) == []


def test_a_read_only_run_ends_with_a_clear_message_and_stays_as_it_is(
    tmp_path: Path, zygote: Zygote, five: Path, checkpoints: Path, uninterrupted: Path
):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    manifests.drop_parts(run, {("primary", "five.00001"): "so that there is something to do"})
    before = content(run)
    ended = _call(zygote, label_on_a_read_only_disk, label_arguments(run, five, checkpoints, "--workers", "0"), str(run))
    assert ended.status == 1, ended.output
    assert "Read-only file system" in ended.output
    assert str(run) in ended.output
    assert "Traceback" not in ended.output
    assert content(run) == before
