"""What a store answers is not what it did: whoever creates an object reads it back, and a commit survives every trouble."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import manifests
from manifests.bucket_store import TIMEOUT_VARIABLE, put
from manifests.location import Url
from manifests.place import place_of
from pipeline.label.run import open_run, units_left
from pipeline.label.sources import read_sources
from stages.labelling.units import label_images_part
from tests.buckets.proxy import FaultProxy, Request, Trouble
from tests.conftest import label_config

_NAME = "columns/images/part.json"


def _first(trouble: Trouble, method: str = "PUT", times: int = 1):
    """The first requests with this method for each object meet with this trouble."""
    return lambda request: trouble if request.method == method and request.number < times else None


@pytest.mark.parametrize("trouble", ["lost reply", "500 after it", "409", "503"])
def test_an_object_is_ours_whatever_the_store_answered_to_its_creation(
    bucket: Url, proxy: FaultProxy, trouble: Trouble
) -> None:
    proxy.trouble = _first(trouble)
    assert place_of(bucket).create(_NAME, b"ours")
    assert place_of(bucket).read(_NAME, limit_bytes=9) == b"ours"


@pytest.mark.parametrize("trouble", ["lost reply", "409", "503"])
def test_an_object_that_another_has_made_is_not_ours(bucket: Url, proxy: FaultProxy, trouble: Trouble) -> None:
    put(bucket / _NAME, b"theirs")
    proxy.forget()
    proxy.trouble = _first(trouble)
    assert not place_of(bucket).create(_NAME, b"ours")
    assert place_of(bucket).read(_NAME, limit_bytes=9) == b"theirs"


def test_a_store_that_hangs_is_an_error_in_bounded_time(
    bucket: Url, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.3")
    proxy.trouble = lambda request: "hang"
    with pytest.raises(OSError, match=r"columns/images/part\.json"):
        place_of(bucket).create(_NAME, b"ours")


@pytest.mark.parametrize("trouble", ["cut", "503"])
def test_an_answer_that_is_cut_or_refused_is_asked_for_again(bucket: Url, proxy: FaultProxy, trouble: Trouble) -> None:
    content = random.Random(0).randbytes(200_000)
    place_of(bucket).replace("a", content)
    proxy.forget()
    proxy.trouble = _first(trouble, "GET", times=2)
    assert place_of(bucket).read("a", limit_bytes=1 << 20) == content
    with place_of(bucket).open("a") as stream:
        assert stream.read() == content
    for listed in (place_of(bucket).entries, place_of(bucket).tree):
        proxy.forget()
        proxy.trouble = _first(trouble, "GET", times=2)
        assert [entry.name for entry in listed("")] == ["a"]


def test_writers_in_a_storm_each_learn_the_truth(bucket: Url, proxy: FaultProxy) -> None:
    rng, lock = random.Random(1), threading.Lock()

    def one_in_five(request: Request) -> Trouble | None:
        with lock:
            return rng.choice(("lost reply", "500 after it", "409", "503")) if rng.random() < 0.2 else None

    proxy.trouble = one_in_five
    names, writers = [f"parts/{number}.json" for number in range(20)], (b"first", b"second")
    with ThreadPoolExecutor(8) as pool:
        made = {(name, writer): pool.submit(place_of(bucket).create, name, writer) for name in names for writer in writers}
    proxy.forget()
    for name in names:
        content = place_of(bucket).read(name, limit_bytes=9)
        assert {writer: made[name, writer].result() for writer in writers} == {w: w == content for w in writers}


class _Clock:
    def beat(self, images: float = 0.0) -> None:
        pass

    def volatile(self, attempt: str, batch_size: int | None) -> manifests.Volatile:
        return manifests.Volatile(attempt=attempt, host="test", seconds=0.0, created_at="2025-01-01T00:00:00Z")


def test_a_manifest_that_comes_late_names_arrays_that_are_there(
    bucket: Url, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, checkpoints: Path, scenes_tar: Path
) -> None:
    """Its PUT is carried out three seconds after the attempt has given up."""

    run_dir = bucket / "run"
    run = open_run(
        replace(label_config(Path("unused"), (str(scenes_tar),), checkpoints), run=run_dir), read_sources([str(scenes_tar)])
    )
    unit = replace(units_left(run)[0], attempt="late")
    came = threading.Event()

    def trouble(request: Request) -> Trouble | None:
        is_manifest = request.path.endswith(f"/{unit.part}.json")
        if is_manifest and request.method == "PUT":
            came.set()
            return "late"
        return None

    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.3")
    monkeypatch.setattr("manifests.bucket_store._CREATE_TRIES", 1)
    proxy.trouble = trouble
    with pytest.raises(OSError, match=f"{unit.part}.json"):
        label_images_part(unit, _Clock())
    assert came.is_set()
    monkeypatch.setenv(TIMEOUT_VARIABLE, "20")
    place, name = place_of(run_dir), f"columns/images/{unit.part}.json"
    for _ in range(100):
        if place.exists(name):
            break
        threading.Event().wait(0.1)
    assert manifests.load_part(run_dir, "images", unit.part).zarr == f"{unit.part}.late.zarr"
    assert [damage for damage in manifests.verify(run_dir) if unit.part in damage.where] == []
