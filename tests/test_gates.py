"""What must pass before a change lands: every test is in one of two targets, and the summary of the tests ends the output."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _commands(target: str) -> list[list[str]]:
    """What make would run for a target, were everything to be installed anew."""
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", target]
    ours = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    said = subprocess.run(command, cwd=ROOT, env=ours, capture_output=True, text=True, check=True).stdout
    return [shlex.split(line) for line in said.splitlines()]


def test_the_gate_runs_all_targets_and_the_tests_last():
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make check", "make campaign", "make test"]
    assert lines[-1] == "make test"
    assert "pytest" in _commands("test")[-1]  # whose summary is what is read


def test_every_test_is_in_make_test_or_in_make_campaign_and_a_plain_pytest_runs_all(pytestconfig: pytest.Config):
    chosen = {
        command[command.index("-m", command.index("pytest")) + 1]
        for target in ("test", "campaign")
        for command in _commands(target)
        if "pytest" in command
    }
    assert {"campaign", "not campaign"} <= chosen
    assert "-m" not in shlex.split(" ".join(pytestconfig.getini("addopts")))


@pytest.mark.parametrize("status", [0, 1])
def test_an_installation_shows_what_pip_says_where_it_fails_and_only_then(tmp_path: Path, status: int):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    pip = tmp_path / ".venv/bin/pip"
    pip.write_text(f"#!/bin/sh\necho a line; echo an error >&2; exit {status}\n")
    pip.chmod(0o755)
    for name in (".venv/bin/python", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    command = ["make", "--file", str(ROOT / "Makefile"), "--no-print-directory", ".venv/installed"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode != 0, "an error" in done.stdout, "a line" in done.stdout) == (status != 0,) * 3
    assert (tmp_path / ".venv/installed").exists() == (status == 0)
