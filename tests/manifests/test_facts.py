"""The index of what manifests say: it saves reading them, and changes nothing that is said of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import manifests
from manifests import facts, local_folder, summary
from manifests.facts import PartFacts, column_facts
from manifests.run import list_column
from tests.manifests.small_run import PARTS, write_run

_PARTS = set(PARTS)


pytestmark = pytest.mark.usefixtures("indexed_at_once")


@pytest.fixture
def run(indexed_run: Path) -> Path:
    return indexed_run


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened through the door."""
    names: list[str] = []
    opening = local_folder.LocalFolder.open

    def recorded(self: local_folder.LocalFolder, name: str) -> object:
        names.append(name)
        return opening(self, name)

    monkeypatch.setattr(local_folder.LocalFolder, "open", recorded)
    return names


def _facts(run: Path, column: str = "dav2") -> dict[str, PartFacts | Exception]:
    found = column_facts(run, column, list_column(run, column, with_states=True))
    return {part: found.of(part) for part in found.parts} | dict(found.unread)


def _manifests(names: list[str]) -> list[str]:
    return sorted(name for name in names if name.startswith("columns/") and not name.endswith("column.json"))


def test_with_an_index_no_manifest_is_read_and_everything_said_is_the_same(run: Path, opened: list[str]) -> None:
    told, found = manifests.summarize(run), [_facts(run, column) for column in ("images", "dav2")]
    assert _manifests(opened) == []
    shutil.rmtree(run / "index")
    opened.clear()
    assert told == manifests.summarize(run)
    assert len(_manifests(opened)) == 2 * len(PARTS)
    shutil.rmtree(run / "index")
    assert found == [_facts(run, column) for column in ("images", "dav2")]


def _signed(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def _rewritten(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    """An index with something else in it, and the right checksum."""

    def rewrite(raw: bytes) -> bytes:
        _, text, numbers = raw.split(b"\n", 2)
        document = json.loads(text)
        return _signed(json.dumps(change(document) or document).encode() + b"\n" + numbers)

    return rewrite


def _numbers(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def rewrite(raw: bytes) -> bytes:
        _, text, numbers = raw.split(b"\n", 2)
        return _signed(text + b"\n" + change(numbers))

    return rewrite


def _set(field: str, value: object) -> Callable[[bytes], bytes]:
    return _rewritten(lambda document: document.update({field: value}))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: b"",
        lambda raw: b"garbage" * 100,
        lambda raw: raw + b" ",
        lambda raw: raw.replace(b'"shard.00000"', b'"shard.00001"'),
        lambda raw: hashlib.sha256(b"[" * 100_000).hexdigest().encode() + b"\n" + b"[" * 100_000,
        lambda raw: raw + b"\0" * 10_000_000,
        _set("format", "distill-any-depth index 2"),
        _set("column", "images"),
        _rewritten(lambda document: [document]),
        _rewritten(lambda document: document.pop("digest")),
        *(_set(field, value) for field in facts._TEXTS for value in ([], [{}] * len(PARTS), None, [True] * len(PARTS), [""])),
        *(_set("sizes", [text] * len(PARTS)) for text in ("1,", ",", "x", "1,,2", "-1")),
        _set("rejected", [[[7, "x"]]] * len(PARTS)),
        _set("rejected", [[["x"]]] * len(PARTS)),
        _set("parts", sorted(PARTS)[::-1]),
        _set("parts", ["shard.00000"] * len(PARTS)),
        _numbers(lambda numbers: numbers[:-8]),
        _numbers(lambda numbers: b""),
        _numbers(lambda numbers: b"\xff" * 8 * len(PARTS) + numbers[8 * len(PARTS) :]),
        _numbers(lambda numbers: b"\x7f" * 8 * len(PARTS) + numbers[8 * len(PARTS) :]),
        _set("alike", [[[], {}, [], None]]),
        _set("states", [{}] * len(PARTS)),
    ],
)
def test_an_index_that_is_anything_else_is_as_none(run: Path, change: Callable[[bytes], bytes]) -> None:
    expected, index = _facts(run), run / "index/dav2"
    shutil.rmtree(run / "index")
    told = manifests.summarize(run)
    index.write_bytes(change(index.read_bytes()))
    assert _facts(run) == expected
    index.write_bytes(change(index.read_bytes()))
    assert manifests.summarize(run) == told


def test_an_index_that_is_cut_anywhere_is_as_none(run: Path, opened: list[str]) -> None:
    raw, expected = (run / "index/dav2").read_bytes(), _facts(run)
    for end in (*range(0, len(raw), 97), len(raw) - 1):
        (run / "index/dav2").write_bytes(raw[:end])
        opened.clear()
        assert _facts(run) == expected
        assert len(_manifests(opened)) == len(PARTS), end
    assert (run / "index/dav2").read_bytes() == raw


@pytest.mark.parametrize("again", ["in place", "another file"])
def test_a_manifest_of_the_same_size_with_its_time_set_back_is_read_anew(run: Path, opened: list[str], again: str) -> None:
    path = manifests.manifest_path(run, "dav2", "shard.00001")
    part = manifests.load_part(run, "dav2", "shard.00001")
    path.write_bytes(manifests.to_json(part))
    manifests.summarize(run)
    before, content = path.stat(), manifests.to_json(dataclasses.replace(part, licence="Apache-2.1"))
    assert len(content) == before.st_size
    if again == "another file":
        path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    opened.clear()
    assert manifests.summarize(run).columns[1].licences == ("Apache-2.0", "Apache-2.1")
    assert _manifests(opened) == ["columns/dav2/shard.00001.json"]


def test_a_number_that_an_index_has_no_room_for_is_summarized_without(run: Path) -> None:
    part = manifests.load_part(run, "dav2", "shard.00001")
    shutil.rmtree(run / "index")
    pixels = dataclasses.replace(part.statistics, pixels=10**30)
    path = manifests.manifest_path(run, "dav2", "shard.00001")
    path.write_bytes(manifests.to_json(dataclasses.replace(part, statistics=pixels)))
    assert manifests.summarize(run).columns[1].pixels > 10**30
    assert not (run / "index/dav2").exists()
    assert (run / "index/images").exists()


def test_columns_are_summarized_alike_by_several_processes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = manifests.summarize(run)
    monkeypatch.setattr(summary, "_WORTH_A_PROCESS", 1)
    assert manifests.summarize(run, workers=2) == expected


def test_what_is_dropped_damaged_or_of_another_run_is_not_remembered(run: Path, tmp_path: Path) -> None:
    manifests.drop_parts(run, {("dav2", "shard.00001"): "for the test"})
    assert _facts(run).keys() == _PARTS - {"shard.00001"}
    path = manifests.manifest_path(run, "dav2", "shard.00000")
    path.write_bytes(path.read_bytes()[:-1])
    assert isinstance(_facts(run)["shard.00000"], manifests.InvalidRecordError)
    other = write_run(tmp_path / "other", rejected=1)
    expected = manifests.summarize(other)
    shutil.copytree(run / "index", other / "index", dirs_exist_ok=True)
    assert manifests.summarize(other) == expected


def test_a_manifest_that_has_just_changed_is_not_remembered(
    run: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_folder, "_RECENT_NS", 3600 * 10**9)
    shutil.rmtree(run / "index")
    for _ in range(2):
        opened.clear()
        assert len(_facts(run)) == len(PARTS)
        assert len(_manifests(opened)) == len(PARTS)
    assert not (run / "index").exists()


def test_few_manifests_are_not_worth_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "WORTH_AN_INDEX", len(PARTS) + 1)
    manifests.summarize(run := write_run(tmp_path / "run"))
    assert not (run / "index").exists()


@pytest.mark.parametrize("kind", ["file", "link", "folder of links", "folders"])
def test_something_else_in_the_place_of_the_index_is_no_hindrance_and_is_not_followed(tmp_path: Path, kind: str) -> None:
    run, outside = write_run(tmp_path / "run"), tmp_path / "outside"
    expected = manifests.summarize(run)
    shutil.rmtree(run / "index")
    outside.mkdir()
    (outside / "dav2").write_bytes(b"mine")
    if kind == "file":
        (run / "index").write_bytes(b"")
    elif kind == "link":
        (run / "index").symlink_to(outside)
    else:
        (run / "index").mkdir()
        (run / "index/dav2").mkdir() if kind == "folders" else (run / "index/dav2").symlink_to(outside / "dav2")
    assert manifests.summarize(run) == expected
    assert [path.name for path in outside.iterdir()] == ["dav2"]
    assert (outside / "dav2").read_bytes() == b"mine"


def test_a_run_that_cannot_be_written_is_summarized_without_an_index(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = manifests.summarize(run)
    shutil.rmtree(run / "index")

    def refused(self: object, name: str, content: bytes) -> None:
        raise PermissionError(13, "Read-only file system", name)

    monkeypatch.setattr(local_folder.LocalFolder, "replace", refused)
    assert manifests.summarize(run) == expected
    assert not (run / "index").exists()


def _summarize_often(run: Path) -> None:
    facts.WORTH_AN_INDEX, local_folder._RECENT_NS = 1, 0
    for _ in range(15):
        (run / "index/dav2").unlink(missing_ok=True)
        manifests.summarize(run)


def test_processes_that_write_the_index_at_once_or_are_killed_leave_a_whole_one_or_none(run: Path) -> None:
    expected = manifests.summarize(run)
    writers = [multiprocessing.get_context("spawn").Process(target=_summarize_often, args=(run,)) for _ in range(3)]
    for writer in writers:
        writer.start()
    while not writers[0].exitcode and writers[1].is_alive():
        assert manifests.summarize(run) == expected
        writers[0].kill()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers[1:]] == [0, 0]
    assert manifests.summarize(run) == expected
    manifests.clean(run)
    assert {path.name for path in (run / "index").iterdir()} <= {"dav2", "dav2+totals", "images", "images+totals"}


def test_the_index_is_no_damage_no_litter_and_no_difference(run: Path, tmp_path: Path) -> None:
    assert (run / "index/dav2").is_file()
    aside = run / "index/.dav2.123.0123456789abcdef"
    aside.write_bytes(b"")
    assert manifests.verify(run) == []
    assert manifests.clean(run) == ["index/.dav2.123.0123456789abcdef"]
    assert manifests.repair(run) == manifests.RepairReport()
    assert (run / "index/dav2").is_file()
    assert manifests.compare(run, write_run(tmp_path / "other")) == []


def test_verify_and_clean_take_nothing_from_the_index(run: Path, opened: list[str]) -> None:
    for tool in (lambda: manifests.verify(run, deep=False), lambda: manifests.clean(run)):
        opened.clear()
        tool()
        assert set(_manifests(opened)) >= {f"columns/{column}/{part}.json" for column in ("images", "dav2") for part in PARTS}
        assert not [name for name in opened if name.startswith("index")]
