"""The commands of docs/cluster.md: Ray nodes with disks and names of their own label a run together, and one of them vanishes.

A node is in namespaces of its own: another host name, another disk under the same path, and processes that die with it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import manifests
from manifests.location import Location, Url
from tests.buckets.proxy import FaultProxy
from tests.faults.processes import Zygote, environment, label_arguments
from tests.faults.steps import Fault, Step

pytestmark = pytest.mark.campaign
_PAGE = (Path(__file__).parents[2] / "docs/cluster.md").read_text(encoding="utf-8")
_START_HEAD, _START_NODE = re.findall(r"^    (ray start .+)$", _PAGE, flags=re.M)
(_SUBMIT,) = re.findall(r"^    (ray job submit .+)$", _PAGE, flags=re.M)
_APART = ("unshare", "-Urmu", "--pid", "--fork", "--mount-proc", "--kill-child")
(_EXPORT,) = re.findall(r"^    export (.+)$", _PAGE, flags=re.M)
_TOKEN = dict(word.split("=", 1) for word in shlex.split(_EXPORT)) | {"RAY_AUTH_TOKEN": "the-token-of-a-cluster-of-tests"}


class _Cluster:
    """Nodes of two cores each, in name only. `disk` is another file system on each of them."""

    def __init__(self) -> None:
        self.disk = Path(tempfile.mkdtemp(prefix="n", dir="/tmp"))  # Ray's sockets need a short path
        self.port, self.dashboard = _free_port(), _free_port()
        self._nodes: list[subprocess.Popen[bytes]] = []

    def start(self, command: str, name: str, *more: str, variables: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A node by a command of the page."""
        words = shlex.split(command.replace("head:6379", f"127.0.0.1:{self.port}").replace("6379", str(self.port)))
        own = ["--node-ip-address", "127.0.0.1", "--num-cpus", "2", "--temp-dir", str(self.disk / "ray"), *more]
        script = 'hostname "$0" && mount -t tmpfs tmpfs "$1" && shift && exec "$@"'
        inside = ["sh", "-c", script, name, str(self.disk), *words, *own]
        node = subprocess.Popen(
            [*_APART, *inside], env=_variables() | (variables or {}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._nodes.append(node)
        return node

    def submit(self, arguments: list[str], **variables: str) -> subprocess.Popen[str]:
        """The page's job, with these arguments in place of its own from `--run` on."""
        words = shlex.split(_SUBMIT.replace("8265", str(self.dashboard)))
        return subprocess.Popen(
            [*words[: words.index("--run")], *arguments],
            env=_variables() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def close(self) -> None:
        for node in self._nodes:
            node.kill()  # and with it all its processes
            node.wait()
        shutil.rmtree(self.disk)


def _variables() -> dict[str, str]:
    return environment() | _TOKEN | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _wait_for(happened: Callable[[], object], *processes: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not happened():
        assert [process.args for process in processes if process.poll() is not None] == []
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def cluster(proxy: FaultProxy) -> Iterator[_Cluster]:
    """A head that is called node-a, and waits for jobs."""
    if subprocess.run([*_APART, "hostname", "node-a"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces of one's own are permitted here")
    started = _Cluster()
    try:
        head = started.start(_START_HEAD, "node-a", "--dashboard-port", str(started.dashboard))
        _wait_for(lambda: _nodes_alive(started.dashboard) == 1, head)
        yield started
    finally:
        started.close()


def _nodes_alive(port: int) -> int:
    """By the head; 0 while it does not answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/v0/nodes")
    request.add_header("Authorization", f"Bearer {_TOKEN['RAY_AUTH_TOKEN']}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
    except OSError:
        return 0
    return sum(node["state"] == "ALIVE" for node in nodes)


@pytest.fixture
def arguments(five: Path, checkpoints: Path) -> Callable[[Location], list[str]]:
    """Arguments that label five scenes one by one, which are fifteen units."""
    return lambda run: label_arguments(run, five, checkpoints, "--part-size", "1", "--workers", "2")


@pytest.fixture
def expected(tmp_path: Path, zygote: Zygote, arguments: Callable[[Location], list[str]]) -> Path:
    ended = zygote.run([*arguments(tmp_path / "expected"), "--workers", "0"])
    assert ended.status == 0, ended.output
    return tmp_path / "expected"


def _hosts(run: Url) -> set[str]:
    columns = ("images", "primary", "assistant")
    parts = [(column, part) for column in columns for part in manifests.committed_parts(run, column)]
    return {manifests.load_part(run, column, part).volatile.host for column, part in parts}


def test_nodes_with_disks_of_their_own_label_a_run_together(
    bucket: Url, proxy: FaultProxy, cluster: _Cluster, arguments: Callable[[Location], list[str]], expected: Path
) -> None:
    refused = cluster.submit(arguments(bucket / "run"), RAY_AUTH_TOKEN="a-token-of-somebody-else")
    assert "Invalid authentication token" in refused.communicate(timeout=200)[0]
    assert refused.returncode == 1
    node = cluster.start(_START_NODE, "node-b")
    _wait_for(lambda: _nodes_alive(cluster.dashboard) == 2, node)
    proxy.latency_s = 0.2  # a unit takes some seconds, so that none has done all before the other's worker is there
    job = cluster.submit(arguments(bucket / "run"))
    told, _ = job.communicate(timeout=500)
    assert job.returncode == 0, told
    assert node.poll() is None
    proxy.latency_s = 0
    assert "15 of 15 parts are committed, 15 of them by this command" in told
    assert _hosts(bucket / "run") == {"node-a", "node-b"}
    assert manifests.verify(bucket / "run", deep=True) == []
    assert manifests.compare(bucket / "run", expected) == []
    assert list(cluster.disk.iterdir()) == []  # on the disk of the one that asks there is nothing of theirs


def test_a_node_that_vanishes_at_work_costs_time_and_nothing_else(
    bucket: Url,
    proxy: FaultProxy,
    cluster: _Cluster,
    arguments: Callable[[Location], list[str]],
    expected: Path,
    tmp_path: Path,
) -> None:
    run, marks = bucket / "run", tmp_path / "marks"
    hang = environment([Fault(Step("open", r"five\.tar$"), "sleep")], marks)["LABEL_FAULTS"]
    node = cluster.start(_START_NODE, "node-c", variables={"LABEL_FAULTS": hang})
    _wait_for(lambda: _nodes_alive(cluster.dashboard) == 2, node)
    proxy.latency_s = 0.2
    job = cluster.submit(arguments(run))
    _wait_for(lambda: list(marks.iterdir()), job, node)  # a worker there is in the middle of a part, and hangs
    node.kill()
    told, _ = job.communicate(timeout=500)
    assert job.returncode == 0, told
    proxy.latency_s = 0
    assert "node-a" in _hosts(run)
    assert manifests.verify(run, deep=True) == []
    assert manifests.compare(run, expected) == []
