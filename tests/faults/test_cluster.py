"""A cluster of two local Ray nodes: one goes away on the way, one has a disk of its own, a teacher cannot be loaded, a request
fits nowhere."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

import manifests
from tests.faults.processes import committed, differences, environment, label_arguments, start, workers_of
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


@contextmanager
def _node_with_a_disk_of_its_own(cluster: Cluster, disk: Path, num_cpus: int) -> Iterator[None]:
    """A node on which `disk` is another, empty folder, as on a machine that does not share it."""
    command = [
        *("unshare", "-Urm", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(disk)),
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
        *(f"--address={cluster.address}", f"--num-cpus={num_cpus}"),
    ]
    if subprocess.run([*command[:6], "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mounts of one's own are permitted here")
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    try:
        while sum(node["Resources"].get("CPU") == num_cpus for node in _alive(cluster)) == 0:
            time.sleep(0.1)
            assert process.poll() is None
            assert time.monotonic() < deadline
        yield
    finally:
        process.terminate()
        process.wait()
        while len(_alive(cluster)) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)


def _alive(cluster: Cluster) -> list[dict[str, Any]]:
    return [node for node in cluster.global_state.node_table() if node["Alive"]]


def test_workers_on_a_disk_of_their_own_are_left_out_and_where_none_else_is_left_nothing_is_labelled(
    tmp_path: Path, cluster: Cluster, five: Path, checkpoints: Path, uninterrupted: Path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = label_arguments(disk / "run", five, checkpoints, "--workers", "3", "--address", str(cluster.address))
    with _node_with_a_disk_of_its_own(cluster, disk, num_cpus=2):
        process = start([*arguments, "--primary.num-cpus", "2"])
        _, messages = process.communicate(timeout=200)
        assert process.returncode == 2, messages
        assert "is not the driver's: it is not there" in messages
        assert "Traceback" not in messages
        assert committed(disk / "run") == []
        process = start(arguments)
        _, messages = process.communicate(timeout=200)
    assert process.returncode == 0, messages
    assert "Workers are left out: " in messages
    assert "disk that they share" in messages
    assert differences(disk / "run", uninterrupted) == []


def test_a_node_that_is_removed_with_a_part_at_work_costs_time_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster, five: Path, checkpoints: Path, uninterrupted: Path
):
    hang = Fault(Step("open", r"columns/[^/]+/[^/]+\.zarr/.+"), "sleep")
    _set_environment(monkeypatch, hang, marks=tmp_path / "marks")
    node = cluster.add_node(num_cpus=1)
    monkeypatch.undo()
    arguments = label_arguments(tmp_path / "run", five, checkpoints, "--workers", "2", "--address", str(cluster.address))
    process = start(arguments)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "marks").iterdir()):  # the node's worker is in the middle of a part, and hangs
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    cluster.remove_node(node, allow_graceful=False)
    _, messages = process.communicate(timeout=280)
    assert process.returncode == 0, messages
    assert differences(tmp_path / "run", uninterrupted) == []


def test_an_idle_worker_makes_way_for_one_that_is_to_start_again_where_there_is_no_room_for_both(
    tmp_path: Path, cluster: Cluster, five: Path, checkpoints: Path, uninterrupted: Path
):
    """The one CPU goes to the worker for teachers, and no picture is there; killed, it may get the CPU again."""
    arguments = label_arguments(tmp_path / "run", five, checkpoints, "--workers", "1", "--address", str(cluster.address))
    process = start([*arguments, "--primary.num-cpus", "0.5", "--assistant.num-cpus", "0.5"])
    assert cluster.head_node
    raylet = cluster.head_node.all_processes["raylet"][0].process.pid
    deadline = time.monotonic() + 240
    while not (workers := workers_of(raylet)):
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    os.kill(workers[0], signal.SIGKILL)
    _, messages = process.communicate(timeout=280)
    assert process.returncode == 0, messages
    assert differences(tmp_path / "run", uninterrupted) == []


def test_without_an_address_a_cluster_on_this_machine_is_left_alone(
    tmp_path: Path, cluster: Cluster, five: Path, checkpoints: Path
):
    assert cluster.head_node
    process = start(label_arguments(tmp_path / "run", five, checkpoints, "--workers", "1"))
    _, messages = process.communicate(timeout=280)
    assert process.returncode == 0, messages


def test_a_teacher_that_no_worker_can_load_ends_the_command_before_anything_is_labelled(
    tmp_path: Path, cluster: Cluster, five: Path, checkpoints: Path
):
    shutil.copytree(checkpoints, tmp_path / "checkpoints")
    for weights in (tmp_path / "checkpoints/assistant").rglob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-100])
    arguments = label_arguments(tmp_path / "run", five, tmp_path / "checkpoints", "--workers", "1")
    process = start([*arguments, "--address", str(cluster.address)])
    _, messages = process.communicate(timeout=200)
    assert process.returncode == 2, messages
    assert "teacher assistant cannot be loaded" in messages
    assert "Traceback" not in messages
    assert [column.pending for column in manifests.summarize(tmp_path / "run").columns] == [5, 5, 5]


def test_a_worker_that_fits_on_no_machine_is_a_clear_error(tmp_path: Path, cluster: Cluster, five: Path, checkpoints: Path):
    arguments = label_arguments(tmp_path / "run", five, checkpoints, "--workers", "1", "--address", str(cluster.address))
    process = start([*arguments, "--primary.num-cpus", "64"])
    _, messages = process.communicate(timeout=280)
    assert process.returncode == 2, messages
    assert "a worker for primary asks for 64 CPUs and 0 GPUs, which no machine has (found: 1 CPUs" in messages
    assert "Traceback" not in messages
