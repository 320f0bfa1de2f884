"""A run from a stranger is only data: each command ends in words, within seconds and a bounded memory, and nothing is executed,
and nothing outside the run is removed or written."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import EpsImagePlugin

import manifests
from manifests.__main__ import main
from pipeline.label.command import label
from stages.distillation.dataset import LabelDataset, SampleRequest
from tests.conftest import label_config
from tests.manifests.hostile_runs import BOMBS, HOSTILE, LINKS, OTHERS, Plant, snapshot, sound_run

pytestmark = pytest.mark.timeout(120)
COMMANDS = (
    ["summary"],
    ["verify"],
    ["verify", "--deep"],
    ["clean", "--dry-run"],
    ["clean"],
    ["repair", "--quick"],
    ["repair"],
)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    (folder / "folder").mkdir(parents=True)
    (folder / "folder" / "kept").write_bytes(b"kept")
    (folder / "victim").write_bytes(b"victim")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return sound_run(tmp_path / "run")


def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    try:
        status = main(arguments)
    except SystemExit as error:  # from argparse
        status = int(error.code or 0)
    out, err = capsys.readouterr()
    return status, out + err


@pytest.mark.parametrize(
    "plant",
    [
        *(pytest.param(plant, id=name) for name, plant in (LINKS | OTHERS).items()),
        *(pytest.param(plant, id=name, marks=pytest.mark.campaign) for name, plant in BOMBS.items()),  # below, all in one
    ],
)
def test_every_command_ends_in_words_verify_names_it_and_what_is_outside_is_left_alone(
    run: Path, outside: Path, plant: Plant, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(run, outside)
    before = snapshot(outside)
    for command in COMMANDS:
        status, said = _said(capsys, *command, str(run))
        assert status in ((1, 2) if command == ["verify", "--deep"] else (0, 1, 2)), (command, said)
        assert said.strip()
        assert all(line.isprintable() for line in said.split("\n")), said
        assert snapshot(outside) == before, command
    status, said = _said(capsys, "compare", str(run), str(run))
    assert (status in (0, 1, 2), bool(said.strip())) == (True, True)


@pytest.mark.parametrize("plant", LINKS.values(), ids=LINKS.keys())
def test_a_link_is_named_as_one_and_costs_no_labels(run: Path, outside: Path, plant: Plant) -> None:
    """Who keeps a column on another disk by a link is told to mount it there instead; nothing is dropped for it."""
    plant(run, outside)
    links = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_symlink())
    found = manifests.verify(run)
    assert sorted(item.where for item in found if item.kind == "link") == links
    report = manifests.repair(run)
    assert [item.kind for item in report.left if item.where in links] == ["link"]
    assert report.dropped == ()
    assert [(run / link).is_symlink() for link in links] == [True]


def test_clean_removes_a_link_that_is_litter_by_its_name_and_not_what_it_points_to(run: Path, outside: Path) -> None:
    names = ["columns/dav2/.x.json.1.0123456789abcdef", "columns/dav2/shard.00001.b2.zarr"]
    for name, target in zip(names, ("victim", "folder"), strict=True):
        (run / name).symlink_to(outside / target)
    before = snapshot(outside)
    assert manifests.clean(run) == names
    assert [(run / name).is_symlink() for name in names] == [False, False]
    assert snapshot(outside) == before


def test_the_run_itself_may_be_reached_through_a_link(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").symlink_to(run)
    assert _said(capsys, "verify", str(tmp_path / "elsewhere"), "--deep")[0] == 0
    assert _said(capsys, "summary", str(tmp_path / "elsewhere"))[0] == 0


def test_a_lock_file_that_is_a_link_makes_no_file_anywhere(run: Path, outside: Path) -> None:
    (run / ".driver.lock").symlink_to(outside / "new")
    with pytest.raises(OSError, match="expected a lock file"):
        manifests.clean(run)
    assert not (outside / "new").exists()


def test_escapes_of_a_run_are_shown_and_not_obeyed(run: Path, outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    HOSTILE["escapes"](run, outside)
    for command in (["summary"], ["verify"]):
        status, said = _said(capsys, *command, str(run))
        assert status == 1
        assert r"\x1b[2J" in said
        assert "\nFinished, no problems." not in said  # no line of its own
    as_json = _said(capsys, "summary", str(run), "--json")[1]
    assert "\x1b]0;owned" in json.loads(as_json)["source_problems"][0]["example"]


DEEPEST = ["verify", "--deep"]
SHALLOWER = (["summary"], ["repair", "--dry-run"], ["clean", "--dry-run"])


@pytest.mark.parametrize("all_commands", [False, pytest.param(True, marks=pytest.mark.campaign)], ids=["in_turn", "all"])
def test_nothing_that_bombs_a_run_makes_a_command_use_half_a_gigabyte(
    tmp_path: Path, outside: Path, all_commands: bool
) -> None:
    """Each run meets the command that reads the most, and one of the others in turn; in the campaign it meets them all."""
    work = []
    for i, plant in enumerate(BOMBS.values()):
        run = sound_run(tmp_path / f"run{i}")
        plant(run, outside)
        work.append((str(run), [DEEPEST, *(SHALLOWER if all_commands else SHALLOWER[i % 3 :][:1])]))
    program = """
import contextlib, io, json, re, sys
import google_crc32c, numpy, pcodec, pyarrow.parquet
from manifests.__main__ import main
def peak():  # of this program alone: ru_maxrss begins with that of the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024
before = peak()
for run, commands in json.loads(sys.argv[1]):
    for command in commands:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = main([*command, run])
        assert status in ((1, 2) if "--deep" in command else (0, 1, 2)), (command, said.getvalue())
        assert said.getvalue().strip(), command
    print(run, command, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program, json.dumps(work)], capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stderr) == (0, "")
    used_mb = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(used_mb) == len(BOMBS)
    assert max(used_mb) < 500, done.stdout


@contextlib.contextmanager
def _memory(megabytes: int) -> Iterator[None]:
    """A MemoryError for more than this above what the process has now."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    has_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has_bytes + (megabytes << 20), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("plant", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_training_reads_it_or_refuses_it_in_words(
    run: Path, outside: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the errors are that the command turns into words; and no program is started for a picture."""
    interpreter = outside / "gs"
    interpreter.write_text(f"#!/bin/sh\ntouch {outside}/executed\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(interpreter))
    plant(run, outside)
    before = snapshot(outside)
    with _memory(500), contextlib.suppress(ValueError, OSError, RuntimeError):
        _read_by_a_training(run)
    assert snapshot(outside) == before


def test_what_things_are_planted_in_is_sound_and_read_whole(run: Path) -> None:
    assert manifests.verify(run) == []
    assert _read_by_a_training(run) == 5  # of six images one is rejected


def _read_by_a_training(run: Path) -> int:
    dataset = LabelDataset(run, ("dav2",))
    return len([dataset[SampleRequest(sample=sample, teacher=0, flip=False)] for sample in range(len(dataset))])


LABELLED = {
    "a column is a link": ("columns/primary", True),
    "a manifest is a link": ("columns/primary/scenes.00001.json", True),
    "run.json is a link": ("run.json", True),
    "a column's record is a link": ("columns/assistant/column.json", True),
    "a pipe for a column's record": ("columns/assistant/column.json", False),
    "a pipe for run.json": ("run.json", False),
    "a pipe for the pictures' manifest": ("columns/images/scenes.00001.json", False),
}


@pytest.mark.parametrize(("name", "as_link"), LABELLED.values(), ids=LABELLED.keys())
def test_a_labelling_that_resumes_in_it_ends_in_words_and_writes_nothing_outside(
    tmp_path: Path, outside: Path, labelled_run: Path, scenes_tar: Path, checkpoints: Path, name: str, as_link: bool
) -> None:
    run = tmp_path / "run"
    shutil.copytree(labelled_run, run)
    (run / "columns/assistant/scenes.00001.json").unlink()  # so that something is left to do
    if as_link:
        shutil.move(run / name, outside / "moved")
        (run / name).symlink_to(outside / "moved")
    else:
        (run / name).unlink()
        os.mkfifo(run / name)
    before = snapshot(outside)
    with contextlib.suppress(OSError):
        report = label(label_config(run, (str(scenes_tar),), checkpoints))
        assert report.failures or (as_link and name.endswith("scenes.00001.json"))
    assert snapshot(outside) == before
