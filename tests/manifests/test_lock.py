"""Drivers share a run; repair and clean have it to themselves or not at all."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import manifests
from tests.manifests.small_run import write_run


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that shares the run in `tmp_path`."""
    script = (
        "import sys; from pathlib import Path; import manifests\n"
        "with manifests.hold_run(Path(sys.argv[1]), exclusive=False): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_drivers_share_a_run_and_whoever_wants_it_alone_is_refused(tmp_path: Path, driver: subprocess.Popen[str]) -> None:
    with manifests.hold_run(tmp_path, exclusive=False):
        pass
    with pytest.raises(manifests.RunInUseError, match="in use by a labelling"):
        with manifests.hold_run(tmp_path, exclusive=True):
            pass


def test_a_killed_driver_holds_nothing(tmp_path: Path, driver: subprocess.Popen[str]) -> None:
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    with manifests.hold_run(tmp_path, exclusive=True):
        with pytest.raises(manifests.RunInUseError, match="repair"):
            with manifests.hold_run(tmp_path, exclusive=False):
                pass
    assert [path.name for path in tmp_path.iterdir()] == [".driver.lock"]


@pytest.mark.parametrize("tool", [manifests.repair, manifests.clean])
def test_repair_and_clean_do_nothing_while_a_driver_is_at_work_and_say_what_they_would_do(
    tmp_path: Path, driver: subprocess.Popen[str], tool: Callable[..., object]
) -> None:
    run = write_run(tmp_path)
    (run / "columns/dav2/shard.00000.a1.zarr/zarr.json").unlink()
    (run / "columns/dav2/shard.00001.a9.zarr").mkdir()
    before = sorted(run.rglob("*"))
    with pytest.raises(manifests.RunInUseError):
        tool(run)
    tool(run, dry_run=True)
    assert sorted(run.rglob("*")) == before
    driver.kill()
    driver.wait()
    tool(run)
    assert sorted(run.rglob("*")) != before


@pytest.mark.parametrize("tool", [manifests.repair, manifests.clean])
def test_a_folder_that_is_no_run_is_not_written_to(tmp_path: Path, tool: Callable[..., object]) -> None:
    with pytest.raises(manifests.NotARunError):
        tool(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_the_file_system_has_no_locks_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for exclusive in (True, False):
        with manifests.hold_run(tmp_path, exclusive=exclusive):
            pass
