"""What a column comes to, remembered: it saves reading the index, and changes nothing that is said of a run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import manifests
from manifests import summary
from tests.manifests.small_run import PARTS as _BY_NAME

PARTS = sorted(_BY_NAME)


pytestmark = pytest.mark.usefixtures("indexed_at_once")


@pytest.fixture
def run(indexed_run: Path) -> Path:
    return indexed_run


def _manifest(run: Path) -> Path:
    return run / f"columns/dav2/{PARTS[0]}.json"


def _same_size_and_time(run: Path) -> None:
    path = _manifest(run)
    told, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b"labelled", b"rejected", 1))
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))


def _copied_anew(run: Path) -> None:
    content = _manifest(run).read_bytes()
    _manifest(run).unlink()
    _manifest(run).write_bytes(content[: len(content) // 2])


_CHANGES: dict[str, Callable[[Path], object]] = {
    "a manifest of another content": _same_size_and_time,
    "a manifest cut": _copied_anew,
    "a manifest lost": lambda run: _manifest(run).unlink(),
    "a folder of nobody": lambda run: (run / f"columns/dav2/{PARTS[0]}.ffffffffffff.zarr").mkdir(),
    "a manifest of no part": lambda run: (run / "columns/dav2/other.00000.json").write_bytes(_manifest(run).read_bytes()),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_whatever_changes_the_answer_is_as_without(run: Path, change: str):
    before = manifests.summarize(run)
    _CHANGES[change](run)
    after = manifests.summarize(run)
    assert after != before
    assert manifests.summarize(run) == after
    for path in (run / "index").iterdir():
        path.unlink()
    assert manifests.summarize(run) == after


def test_a_second_summary_reads_the_totals_alone(run: Path, monkeypatch: pytest.MonkeyPatch):
    expected = manifests.summarize(run)
    monkeypatch.setattr(summary, "column_facts", None)  # not a thing to call
    assert manifests.summarize(run) == expected


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"0" * 64 + b"\n{}", b"[" * 100_000],
)
def test_totals_that_are_anything_else_are_as_none(run: Path, content: bytes):
    expected = manifests.summarize(run)
    (run / "index/dav2+totals").write_bytes(content)
    assert manifests.summarize(run) == expected


def test_totals_of_another_version_with_the_right_key_are_as_none(run: Path):
    expected = manifests.summarize(run)
    path = run / "index/dav2+totals"
    document = json.loads(path.read_bytes().partition(b"\n")[2])
    document["totals"]["of_tomorrow"] = document["totals"].pop("views")
    content = json.dumps(document).encode()
    path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    assert manifests.summarize(run) == expected


def test_a_damaged_manifest_is_named_each_time(run: Path):
    _manifest(run).write_bytes(b"{")
    first = manifests.summarize(run)
    assert first.columns[-1].damage or first.columns[0].damage
    assert manifests.summarize(run) == first
