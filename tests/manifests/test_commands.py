"""`python -m manifests`, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import manifests
from tests.manifests.small_run import fail_part, write_run


def _run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "manifests", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        encoding="utf-8",
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("finished"))


def test_the_summary_of_a_finished_run_is_a_table_and_exit_status_0(finished: Path) -> None:
    done = _run("summary", finished)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{finished}: 9 images, 4 parts, 2 sources"
    assert lines[2].split()[:6] == ["column", "parts", "labelled", "rejected", "failed", "pending"]
    assert lines[4].split()[:9] == ["dav2", "4/4", "8", "1", "0", "0", "-3", "1.556", "5"]
    end = lines[2].index("pending") + len("pending")
    assert [line[end - 2 : end + 1] for line in lines[3:5]] == [" 0 "] * 2
    assert "dav2: rejected 1 undecodable" in lines
    assert "Licences of the labels' weights: dav2 Apache-2.0" in lines
    assert lines[-1] == "Finished, no problems."


def test_the_summary_of_an_unfinished_run_says_why_and_exits_with_1(tmp_path: Path) -> None:
    problems = [manifests.Problem(kind="truncated", where="offset 512", message="cut inside a member")]
    run = write_run(tmp_path, problems=problems, commit=["shard.00001", "photos.v1.00000"])
    fail_part(run, "dav2", "shard.00000")
    (manifests.column_dir(run, "dav2") / "shard.00000.a1.zarr").mkdir()
    done = _run("summary", run)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == (
        "Not finished or not sound: 3 failed images, 5 pending images, 1 catalogue problems."
    )
    assert "dav2: failed 3 out_of_memory" in done.stdout
    assert "dav2: 1 .zarr folders that no manifest names" in done.stdout
    assert "source shard: 1 truncated, for example offset 512: cut inside a member" in done.stdout


def test_the_summary_as_json_has_the_same_numbers(finished: Path) -> None:
    done = _run("summary", finished, "--json")
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["complaints"], summary["images_total"]) == (0, [], 9)
    expected = manifests.summarize(finished).columns[1]
    assert summary["columns"][1]["mean"] == expected.mean
    assert summary["columns"][1]["rejected"] == {"undecodable": 1}


def test_verify_is_silent_on_progress_off_a_terminal_and_exits_with_0_for_a_sound_run(finished: Path) -> None:
    done = _run("verify", finished)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{finished}: sound\n", "")


def test_verify_names_the_damage_and_exits_with_1(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    name = "columns/dav2/shard.00001.a1.zarr/zarr.json"
    (run / name).unlink()
    done = _run("verify", run)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [f"{name}: No such file or directory [missing_file]", f"{run}: 1 problem found"]
    as_json = _run("verify", run, "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout) == {
        "run_dir": str(run),
        "damage": [{"where": name, "kind": "missing_file", "message": "No such file or directory"}],
    }


@pytest.mark.parametrize("command", ["summary", "verify"])
def test_a_damaged_run_json_is_a_problem_and_not_a_wrong_command(tmp_path: Path, command: str) -> None:
    (tmp_path / "run.json").write_text("{")
    done = _run(command, tmp_path)
    assert done.returncode == 1
    assert "run.json" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["summary", "verify"])
def test_what_is_not_a_run_is_a_wrong_command(tmp_path: Path, command: str) -> None:
    done = _run(command, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"python -m manifests: {tmp_path}: not a run: found no run.json in it, "
        "expected a folder made by `python -m pipeline.label`\n"
    )


@pytest.mark.parametrize("arguments", [(), ("summary",), ("sumary", "x"), ("verify", "x", "--fix")])
def test_a_wrong_command_line_exits_with_2(arguments: tuple[str, ...]) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert "usage: python -m manifests" in done.stderr


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    stray = os.fsencode(run / "columns/dav2/shard.00001.a1.zarr") + b"/caf\xe9"
    with open(stray, "wb"):
        pass
    done = _run("verify", run, PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert r"caf\udce9" in done.stdout
