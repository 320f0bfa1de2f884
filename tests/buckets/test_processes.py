"""Real drivers of a run in a bucket: they share it, are killed at any write, and are paused while others clean up."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

import manifests
from manifests.location import Url
from manifests.place import place_of
from manifests.run import RUN_RECORD
from tests.buckets.conftest import settings
from tests.buckets.proxy import FaultProxy, Request, Trouble
from tests.faults.processes import Ended, Zygote, label_arguments

pytestmark = pytest.mark.campaign

_PAGE = (Path(__file__).parents[2] / "docs/cluster.md").read_text(encoding="utf-8")
_SHARDS = re.findall(r"^    python -m pipeline\.label .* (--shard \S+)$", _PAGE, flags=re.M)
_WRITES = ("PUT", "POST", "DELETE")
_PARTS = 9


@pytest.fixture
def start(bucket: Url, zygote: Zygote, five: Path, checkpoints: Path) -> Callable[..., int]:
    """Starts a driver of the run `bucket / "run"` over the five scenes, without Ray."""
    arguments = label_arguments(bucket / "run", five, checkpoints, "--workers", "0")
    return lambda *more: zygote.start([*arguments, *more], variables=settings())


def _attempts(run: Url) -> set[str]:
    """The folders of arrays, of committed parts and of others."""
    return {name for entry in place_of(run).tree("columns") if (name := entry.name).endswith(".zarr")}


def test_two_shards_at_once_make_each_part_once_and_their_union_is_the_run(
    bucket: Url, start: Callable[..., int], zygote: Zygote, uninterrupted: Path
) -> None:
    assert _SHARDS == ["--shard 0/2", "--shard 1/2"]
    drivers = [start(*shard.split()) for shard in _SHARDS]
    ends = [zygote.wait(pid) for pid in drivers]
    assert [end.status for end in ends] == [0, 0], ends
    assert len(_attempts(bucket / "run")) == _PARTS
    assert manifests.compare(bucket / "run", uninterrupted) == []
    assert manifests.verify(bucket / "run", deep=True) == []


def test_two_drivers_of_all_parts_commit_each_once_where_a_fifth_of_all_requests_goes_wrong(
    bucket: Url, proxy: FaultProxy, start: Callable[..., int], zygote: Zygote, uninterrupted: Path
) -> None:
    rng, lock = random.Random(3), threading.Lock()

    def one_in_five(request: Request) -> Trouble | None:
        with lock:
            return rng.choice(("lost reply", "500 after it", "409", "503", "cut")) if rng.random() < 0.2 else None

    proxy.trouble = one_in_five
    drivers = [start("--max-attempts", "20") for _ in range(2)]
    ends = [zygote.wait(pid) for pid in drivers]
    proxy.forget()
    assert [end.status for end in ends] == [0, 0], ends
    made = [int(found[1]) for end in ends if (found := re.search(r"parts are committed, (\d+) of them", end.output))]
    assert (len(made), sum(made)) == (2, _PARTS)
    assert manifests.verify(bucket / "run", deep=True) == []
    assert manifests.compare(bucket / "run", uninterrupted) == []


class _Struck:
    """Does something to a process at its n-th write into the run: before it is carried out, or after."""

    def __init__(self, signal_number: int, nth: int, *, carried_out: bool = True, path: str = "/run/") -> None:
        self.pid, self.done = 0, threading.Event()
        self._signal, self._left, self._path = signal_number, nth, path
        self._trouble: Trouble = "lost reply" if carried_out else "503"
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Trouble | None:
        if not self.pid or request.method not in _WRITES or self._path not in request.path:
            return None
        with self._lock:
            self._left -= 1
            if self._left:
                return self._trouble if self.done.is_set() and self._signal == signal.SIGKILL else None
            os.kill(self.pid, self._signal)
            self.done.set()
        return self._trouble if self._signal == signal.SIGKILL else None


@pytest.mark.parametrize(("first", "every"), [(first, 3) for first in (1, 2, 3)])
def test_killed_at_any_write_the_run_ends_as_the_uninterrupted_one(
    bucket: Url,
    proxy: FaultProxy,
    start: Callable[..., int],
    zygote: Zygote,
    uninterrupted: Path,
    first: int,
    every: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each process dies some writes later than the one before it, in turn before and after the write is carried out, and meets
    what the others left. What is committed at any time is whole."""
    run = bucket / "run"
    for nth in count(first, every):
        strike = _Struck(signal.SIGKILL, nth, carried_out=nth // every % 2 == 0)
        proxy.trouble = strike
        strike.pid = start()
        ended = zygote.wait(strike.pid)
        proxy.forget()
        if place_of(run).exists(RUN_RECORD):
            assert manifests.verify(run, deep=True) == [], nth
        if ended.status == 0:
            break
        assert (ended.status, strike.done.is_set()) == (-signal.SIGKILL, True), ended.output
    assert nth > 20
    monkeypatch.setattr("manifests.bucket_hold._DEAD_AFTER", timedelta(0))  # of those who were killed
    assert manifests.repair(run).dropped == ()
    assert manifests.compare(run, uninterrupted) == []


@pytest.fixture(params=["00000.", "00000.json"], ids=["arrays", "manifest"])
def paused(request: pytest.FixtureRequest, proxy: FaultProxy, start: Callable[..., int]) -> tuple[int, Callable[[], None]]:
    """A driver that was stopped while it writes a part of the column `primary`."""
    strike = _Struck(signal.SIGSTOP, 3 if request.param.endswith("00.") else 1, path=f"columns/primary/five.{request.param}")
    proxy.trouble = strike
    strike.pid = start()
    assert strike.done.wait(120)
    return strike.pid, lambda: os.kill(strike.pid, signal.SIGCONT)


def test_who_cleans_up_beside_a_paused_driver_takes_nothing_of_it(
    bucket: Url,
    paused: tuple[int, Callable[[], None]],
    zygote: Zygote,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pid, go_on = paused
    run = bucket / "run"
    before = _attempts(run)
    with pytest.raises(manifests.RunInUseError, match="found its sign of life"):
        manifests.clean(run)
    monkeypatch.setattr("manifests.bucket_hold._DEAD_AFTER", timedelta(0))  # as after five minutes
    assert manifests.clean(run) == []
    assert _attempts(run) == before
    go_on()
    _ends_equal(zygote.wait(pid), run, uninterrupted)
    assert len(_attempts(run)) == _PARTS


def test_a_driver_whose_arrays_were_cleaned_away_before_it_named_them_makes_them_anew(
    bucket: Url,
    proxy: FaultProxy,
    start: Callable[..., int],
    zygote: Zygote,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a machine was suspended for days while it uploaded."""
    run, strike = bucket / "run", _Struck(signal.SIGSTOP, 3, path="/run/columns/primary/five.00000.")
    proxy.trouble = strike
    strike.pid = start()
    assert strike.done.wait(120)
    monkeypatch.setattr("manifests.bucket_hold._DEAD_AFTER", timedelta(0))
    monkeypatch.setattr("manifests.bucket_folder.ABANDONED_AFTER", timedelta(seconds=-1))
    assert [name for name in manifests.clean(run) if name.startswith("columns/primary/five.00000.")] != []
    os.kill(strike.pid, signal.SIGCONT)
    _ends_equal(zygote.wait(strike.pid), run, uninterrupted)


def _ends_equal(ended: Ended, run: Url, uninterrupted: Path) -> None:
    assert ended.status == 0, ended.output
    assert manifests.verify(run, deep=True) == []
    assert manifests.compare(run, uninterrupted) == []
