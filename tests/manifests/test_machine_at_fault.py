"""What this machine cannot read may be sound: it is named, nothing is deleted for it, and the command ends with 1."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import manifests
from manifests.__main__ import main
from tests.manifests.small_run import fail_part, write_run

CODES = [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT]
PART = "columns/dav2/shard.00001"
PLACES = [
    "run.json",
    "catalog/shard.json",
    "catalog/shard.*.parquet",
    "columns/dav2/column.json",
    "columns",
    "columns/dav2",
    "columns/images",
    "columns/images/shard.00001.json",
    f"{PART}.json",
    "columns/dav2/shard.00002.failure.json",
    f"{PART}.a1.zarr",
    f"{PART}.a1.zarr/context",
    f"{PART}.a1.zarr/context/zarr.json",
    f"{PART}.a1.zarr/context/c/0/0",
    "columns/images/shard.00001.a1.zarr/jpeg/c/0",
]
COMMANDS = [["summary"], ["verify"], ["verify", "--deep"], ["clean"], ["repair", "--quick"], ["repair"]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "run")
    fail_part(run, "dav2", "shard.00002")  # to be cleaned: it stands beside a manifest
    return run


def _files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name[0] != "."}


def _fail_to_open(monkeypatch: pytest.MonkeyPatch, place: Path, code: int) -> None:
    """As the system would: by what is opened, whatever the name that it is opened by."""
    number, real_open = os.stat(place).st_ino, os.open

    def failing(path: str | bytes | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = real_open(path, flags, mode, dir_fd=dir_fd)
        if os.fstat(descriptor).st_ino == number:
            os.close(descriptor)
            raise OSError(code, os.strerror(code), os.fspath(path))
        return descriptor

    monkeypatch.setattr(os, "open", failing)


def _reads(command: list[str], place: str) -> bool:
    """Whether the command needs to open this to do its work."""
    if place.endswith(("shard.json", "column.json")):
        return True
    if place.startswith("catalog") or place.endswith((".failure.json", ".zarr", "/context")):
        return command[0] in ("verify", "repair")
    if ".zarr/" in place or place.endswith(".parquet"):
        return command in (["verify", "--deep"], ["repair"])
    return command != ["clean"] or not place.startswith("columns/") or not place.endswith(".json")


@pytest.mark.parametrize("place", PLACES)
def test_what_cannot_be_opened_is_named_and_left(
    run: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, path = _files(run), next(run.glob(place))
    for i, command in enumerate(COMMANDS):
        code = CODES[(PLACES.index(place) + i) % len(CODES)]
        if not path.exists():
            assert COMMANDS[i - 1] == ["clean"]
            break
        with monkeypatch.context() as patch:
            _fail_to_open(patch, path, code)
            status = main([*command, str(run)])
        said = "".join(capsys.readouterr())
        lost = before.keys() - _files(run).keys()
        assert lost <= {"columns/dav2/shard.00002.failure.json"}, (command, said)
        if _reads(command, place):
            assert (status, os.strerror(code) in said) == (1, True), (command, said)
    assert manifests.verify(run) == []


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("place", [f"{PART}.json", f"{PART}.a1.zarr/context/c/0/0"])
def test_every_error_of_the_system_is_reported_with_advice(
    run: Path, place: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_to_open(monkeypatch, run / place, code)
    report = manifests.repair(run)
    assert report.dropped == ()
    assert {item.kind for item in report.left} == {"unreadable"}
    assert "cannot be read here and now" in report.left[0].message
    assert report.left[0].message.count(";") >= 1


@pytest.mark.parametrize("package", ["pcodec", "google_crc32c", "numpy", "pyarrow", "pyarrow.parquet"])
def test_a_package_that_is_missing_costs_no_labels(
    run: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    before = _files(run)
    assert main(["verify", "--deep", str(run)]) == 1
    assert package in capsys.readouterr().out
    assert main(["repair", str(run)]) == 1
    assert _files(run) == before


def test_memory_that_runs_out_costs_no_labels(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def failing(name: str, package: str | None = None) -> object:
        if name == "pcodec":
            raise MemoryError
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", failing)
    report = manifests.repair(run)
    assert (report.dropped, {item.kind for item in report.left}) == ((), {"unreadable"})
    assert "MemoryError" in report.left[0].message


def test_a_record_of_a_later_version_is_left(run: Path) -> None:
    """Its checksum is right: what this version does not understand is not damaged."""
    path = run / f"{PART}.json"
    later = path.read_bytes().replace(b'"format_version": 2', b'"format_version": 3')
    path.write_bytes(later)  # with the old checksum: a flipped bit
    assert len(manifests.repair(run, dry_run=True).dropped) == 1
    path.write_bytes(later.replace(b'  "record_sha256"', b'  "no_sha256"'))
    report = manifests.repair(run)
    assert (report.dropped, [item.kind for item in report.left]) == ((), ["wrong_version"])
    assert path.exists()


def _remove(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("harm", [_remove, _cut])
def test_every_file_of_a_run_that_is_removed_or_cut_by_one_byte_is_named_by_the_quick_verify(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    run = write_run(tmp_path / "run", images={"shard": 6}, commit=["shard.00000", "shard.00001"])
    fail_part(run, "dav2", "shard.00001")
    contents = _files(run)
    pending = 0
    for name, content in contents.items():
        harm(run / name)
        if name == "run.json" and harm is _remove:
            with pytest.raises(manifests.NotARunError):
                manifests.verify(run, deep=False)
        elif harm is _remove and name == "catalog/shard.json":
            found = manifests.verify(run, deep=False)
            assert {item.kind for item in found} == {"unknown_part"}  # of each part, which names the catalogue
            assert all("restore catalog/shard.json" in item.message for item in found)
        elif harm is _remove and name.endswith("column.json"):
            assert [item.where for item in manifests.verify(run, deep=False)] == [name.removesuffix("/column.json")]
        elif harm is _remove and name.startswith("columns/") and name.count("/") == 2:
            assert (
                manifests.verify(run, deep=False) == []
            )  # without a manifest a part is absent: `summary` counts it as pending
            pending += 1
        else:
            assert name in {item.where for item in manifests.verify(run, deep=False)}, name
        (run / name).write_bytes(content)
    assert pending == (5 if harm is _remove else 0)  # four manifests, and the failure record
    assert manifests.verify(run) == []
