"""SIGKILL at each named step, then again from where it stopped: the run ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

import manifests
from tests.faults.processes import Zygote, committed, differences, label_arguments, start
from tests.faults.steps import RUN_STEPS, UNIT_STEPS, Fault

# A record that has its name is not written again: of its last two steps, a run can be killed at one only.
_CHAINS = {
    "first": [name for name in RUN_STEPS if not name.endswith("synced")] + list(UNIT_STEPS),
    "second": [name for name in RUN_STEPS if not name.endswith("loses the other")],
}
_CHAINS["a third"] = _CHAINS["first"][::3]


@pytest.mark.parametrize(
    "chain", ["a third", *(pytest.param(chain, marks=pytest.mark.campaign) for chain in ("first", "second"))]
)
def test_killed_at_each_named_step_in_turn_the_run_ends_as_the_uninterrupted_one(
    tmp_path: Path, zygote: Zygote, five: Path, checkpoints: Path, uninterrupted: Path, chain: str
):
    """Each process meets what the one before it left, and after each kill all that is there is whole."""
    arguments = label_arguments(tmp_path / "run", five, checkpoints, "--workers", "0")
    for name in _CHAINS[chain]:
        ended = zygote.run(arguments, Fault((RUN_STEPS | UNIT_STEPS)[name], "kill"))
        assert ended.status == -signal.SIGKILL, f"{name}: {ended.output}"
        if (tmp_path / "run/run.json").exists():
            assert manifests.verify(tmp_path / "run", deep=True) == [], name
    done = len([path for path in committed(tmp_path / "run") if path.parent.name == "images"])
    ended = zygote.run(arguments)
    assert ended.status == 0, ended.output
    if done:  # what was done before counts, from the first line on
        assert ended.output.startswith(f"label images: {min(2 * done, 5)}/5 images; 0 rejected, 0 failed\n"), ended.output
    assert bool(done) == (chain != "second")
    assert differences(tmp_path / "run", uninterrupted) == []


def test_the_steps_at_which_a_part_is_not_yet_committed_and_at_which_it_is(
    tmp_path: Path, zygote: Zygote, five: Path, checkpoints: Path
):
    """The kills come where their names say: just before the link there is no manifest, just after it there is one."""
    run = tmp_path / "run"
    arguments = label_arguments(run, five, checkpoints, "--workers", "0")
    for name, manifest_count in [
        ("images: its last file is written", 0),
        ("images: the manifest is written and gets its name", 0),
        ("images: the manifest has its name and loses the other", 1),
        ("images: the manifest has its name alone and the folder is synced", 2),
    ]:
        zygote.run(arguments, Fault(UNIT_STEPS[name], "kill"))
        assert len(committed(run)) == manifest_count, name
    assert len(list(run.glob("columns/images/*.zarr"))) == 4  # one for each kill: two committed, two left over
    assert len(manifests.clean(run)) == 2 + 2  # with two asides


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
        lambda file: shutil.copy(file, f"{file}.copy"),
    ],
)
@pytest.mark.parametrize("pattern", ["columns/primary/*.zarr/patch/c/0/0", "catalog/*.parquet", "catalog/*.json"])
def test_the_comparison_of_runs_can_fail(tmp_path: Path, uninterrupted: Path, harm, pattern: str):
    shutil.copytree(uninterrupted, tmp_path / "run")
    assert differences(tmp_path / "run", uninterrupted) == []
    harm(next((tmp_path / "run").glob(pattern)))
    assert differences(tmp_path / "run", uninterrupted) != []


@pytest.mark.campaign
def test_workers_of_ray_are_killed_at_several_steps_and_one_run_still_does_it_all(
    tmp_path: Path, five: Path, checkpoints: Path, uninterrupted: Path
):
    steps = ["images: its first file is opened", "primary: its files are hashed"]
    steps += ["images: the manifest has its name and loses the other"]
    arguments = label_arguments(tmp_path / "run", five, checkpoints, "--workers", "2", "--max-attempts", "4")
    process = start(arguments, [Fault(UNIT_STEPS[name], "kill") for name in steps], tmp_path / "marks")
    _, messages = process.communicate(timeout=280)
    assert process.returncode == 0, messages
    assert len(os.listdir(tmp_path / "marks")) == len(steps)
    assert differences(tmp_path / "run", uninterrupted) == []


@pytest.mark.campaign
def test_a_driver_is_killed_while_a_worker_of_ray_commits_and_the_next_one_ends_the_run(
    tmp_path: Path, zygote: Zygote, five: Path, checkpoints: Path, uninterrupted: Path
):
    arguments = label_arguments(tmp_path / "run", five, checkpoints)
    fault = Fault(UNIT_STEPS["primary: the manifest is written and gets its name"], "kill the driver")
    process = start([*arguments, "--workers", "2"], [fault], tmp_path / "marks")
    process.communicate(timeout=280)
    assert process.returncode == -signal.SIGKILL
    assert zygote.run([*arguments, "--workers", "0"]).status == 0
    assert differences(tmp_path / "run", uninterrupted) == []
