"""A cluster of two local Ray nodes: one goes away on the way, a teacher cannot be loaded, a request fits nowhere."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

import manifests
from tests.faults.processes import differences, environment, label_arguments, start, workers_of
from tests.faults.steps import Fault, Step

pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One node of one CPU."""
    with pytest.MonkeyPatch.context() as patch:
        _set_environment(patch)
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield started
    started.shutdown()


def _set_environment(patch: pytest.MonkeyPatch, *faults: Fault, marks: Path | None = None) -> None:
    """Ray's workers have the environment of their node, not of the driver."""
    for name, value in environment(faults, marks).items():
        patch.setenv(name, value)


def test_a_node_that_is_removed_with_a_part_at_work_costs_time_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster, five: Path, checkpoints: Path, uninterrupted: Path
):
    hang = Fault(Step("os.rename", r"columns/[^/]+/[^/]+\.zarr/.*\.partial$"), "sleep")
    _set_environment(monkeypatch, hang, marks=tmp_path / "marks")
    node = cluster.add_node(num_cpus=1)
    monkeypatch.undo()
    arguments = label_arguments(tmp_path / "run", five, checkpoints, "--workers", "2", "--address", str(cluster.address))
    process = start(arguments)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "marks").iterdir()):  # the node's worker is in the middle of a part, and hangs
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    cluster.remove_node(node, allow_graceful=False)
    _, messages = process.communicate(timeout=200)
    assert process.returncode == 0, messages
    assert differences(tmp_path / "run", uninterrupted) == []


def test_an_idle_worker_makes_way_for_one_that_is_to_start_again_where_there_is_no_room_for_both(
    tmp_path: Path, cluster: Cluster, five: Path, checkpoints: Path, uninterrupted: Path
):
    """The one CPU goes to the worker for pictures; when that is killed, to one for teachers, which have no pictures yet."""
    arguments = label_arguments(tmp_path / "run", five, checkpoints, "--workers", "1", "--address", str(cluster.address))
    process = start([*arguments, "--primary.num-cpus", "0.5", "--assistant.num-cpus", "0.5"])
    assert cluster.head_node
    raylet = cluster.head_node.all_processes["raylet"][0].process.pid
    deadline = time.monotonic() + 120
    while not (workers := workers_of(raylet)):
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    os.kill(workers[0], signal.SIGKILL)
    _, messages = process.communicate(timeout=200)
    assert process.returncode == 0, messages
    assert differences(tmp_path / "run", uninterrupted) == []


def test_without_an_address_a_cluster_on_this_machine_is_left_alone(
    tmp_path: Path, cluster: Cluster, five: Path, checkpoints: Path
):
    assert cluster.head_node
    process = start(label_arguments(tmp_path / "run", five, checkpoints, "--workers", "1"))
    _, messages = process.communicate(timeout=200)
    assert process.returncode == 0, messages


def test_a_teacher_that_cannot_be_loaded_is_given_up_and_the_other_columns_are_finished(
    tmp_path: Path, cluster: Cluster, five: Path, checkpoints: Path
):
    shutil.copytree(checkpoints, tmp_path / "checkpoints")
    for weights in (tmp_path / "checkpoints/assistant").rglob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-100])
    arguments = label_arguments(tmp_path / "run", five, tmp_path / "checkpoints", "--workers", "1")
    process = start([*arguments, "--address", str(cluster.address)])
    told, messages = process.communicate(timeout=200)
    assert process.returncode == 1, messages
    assert "column assistant was given up: teacher assistant cannot be loaded" in messages
    assert "6 of 9 parts committed now" in told
    assert [column.pending for column in manifests.summarize(tmp_path / "run").columns] == [0, 0, 5]


def test_a_worker_that_fits_on_no_machine_is_a_clear_error(tmp_path: Path, cluster: Cluster, five: Path, checkpoints: Path):
    arguments = label_arguments(tmp_path / "run", five, checkpoints, "--workers", "1", "--address", str(cluster.address))
    process = start([*arguments, "--primary.num-cpus", "64"])
    _, messages = process.communicate(timeout=200)
    assert process.returncode == 2, messages
    assert "a worker for primary asks for 64 CPUs and 0 GPUs, which no machine has (found: 1 CPUs" in messages
    assert "Traceback" not in messages
