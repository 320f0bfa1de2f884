"""Runs that somebody has prepared: each is a sound small run with one thing in it that must stay only data.

A stranger can give every checksum its right value, so most of what is planted here is committed as if it had been made so.
`outside` is a folder beside the run that nothing may read from, write to or remove.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.pcodec import PCodec

import manifests
from stages.label_store import ContextPicture, write_pictures
from stages.views import SourceBox
from tests.manifests.small_run import commit_again, write_run

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\rFinished, no problems.\n\u202eslebal"
PART, ZARR = "columns/dav2/shard.00001.json", "columns/dav2/shard.00001.a1.zarr"
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(executed) print\nshowpage\n%%EOF\n"

Plant = Callable[[Path, Path], object]


def sound_run(run_dir: Path) -> Path:
    """What things are planted in: one source, two parts in each column, the second one with a rejected image."""
    return write_run(run_dir, images={"shard": 6}, commit=("shard.00000", "shard.00001"))


class _Payload:
    """Whoever unpickles this makes a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self.canary),)


def _in(run: Path, name: str) -> Path:
    """A file of the run; of a table, whose name has its digest, the name is a pattern."""
    return next(run.glob(name)) if "*" in name else run / name


def _link(name: str) -> Plant:
    """What stood there goes outside, and a link to it takes its place: all that is behind it is sound."""

    def plant(run: Path, outside: Path) -> None:
        path = _in(run, name)
        target = outside / path.name
        shutil.move(path, target)
        path.symlink_to(target)

    return plant


def _new_link(name: str, target: str = "victim") -> Plant:
    return lambda run, outside: (run / name).symlink_to(outside / target)


def _instead(name: str, make: Callable[[Path], object]) -> Plant:
    def plant(run: Path, outside: Path) -> None:
        path = _in(run, name)
        path.unlink()
        make(path)

    return plant


def _write(name: str, content: Callable[[Path], bytes]) -> Plant:
    return lambda run, outside: (run / name).write_bytes(content(run))


def _sparse(name: str, size_bytes: int) -> Plant:
    return lambda run, outside: os.truncate(run / name, size_bytes)


def _part(**changes: Any) -> Plant:
    """A manifest with a right checksum that says something else; unchecked, as only a stranger writes it."""
    return _change(PART, **changes)


def _write_record(path: Path, document: Mapping[str, Any]) -> None:
    """Any document, with its checksum."""
    blank = json.dumps(dict(document) | {"record_sha256": "0" * 64}, sort_keys=True, indent=2, ensure_ascii=False)
    raw = (blank + "\n").encode("utf-8", "surrogatepass")
    path.write_bytes(raw.replace(b"0" * 64, hashlib.sha256(raw).hexdigest().encode(), 1))


def _many_wrong_images(run: Path, outside: Path) -> None:
    _part(images=[])(run, outside)
    path = run / PART
    path.write_bytes(path.read_bytes().replace(b'"images": []', b'"images": [' + b"0," * 1_000_000 + b"0]"))


def _traversal(run: Path, outside: Path) -> None:
    """The manifest lists a file outside, with its right size and digest."""
    record = json.loads((run / PART).read_bytes())
    path = f"{record['zarr']}/../../../../outside/victim"
    record["files"].append({"path": path, "size_bytes": 6, "sha256": manifests.sha256_file(outside / "victim")})
    _write_record(run / PART, record | {"files": sorted(record["files"], key=lambda file: file["path"])})


def _run_record(**changes: Any) -> Plant:
    return _change("run.json", **changes)


def _change(name: str, /, **changes: Any) -> Plant:
    return lambda run, outside: _write_record(run / name, json.loads((run / name).read_bytes()) | changes)


def _escapes(run: Path, outside: Path) -> None:
    """In a catalogue, keys, messages, a licence, names of files; every record has its right checksum."""
    catalogue = json.loads((run / "catalog/shard.json").read_bytes())
    catalogue["problems"] = [{"kind": "cut_payload", "where": ESCAPES, "message": ESCAPES}]
    _write_record(run / "catalog/shard.json", catalogue)
    record = json.loads((run / PART).read_bytes())
    record["licence"] = ESCAPES
    record["versions"][ESCAPES] = 7
    record["images"][1]["problem"]["message"] = record["images"][0]["key"] = ESCAPES
    _write_record(run / PART, record)
    (run / ZARR / ESCAPES.replace("/", "")).write_bytes(b"")
    (run / "columns/dav2" / f"shard.00000.{ESCAPES}.zarr").mkdir()
    configuration = {"max_rejected_fraction": 0}
    _run_record(configuration=configuration)(run, outside)


def _escapes_in_a_column(run: Path, outside: Path) -> None:
    """In what decides a column's content; the parts say something else."""
    _change("columns/dav2/column.json", fingerprint={ESCAPES: ESCAPES}, configuration={ESCAPES: ESCAPES})(run, outside)


def _named_by_escapes(run: Path, outside: Path) -> None:
    """A column and a source: sound records in places of such a name."""
    (run / "columns" / ESCAPES).mkdir()
    shutil.copyfile(run / "columns/dav2/column.json", run / "columns" / ESCAPES / "column.json")
    shutil.copyfile(run / "catalog/shard.json", run / "catalog" / f"{ESCAPES}.json")


def _file_for_a_folder(name: str) -> Plant:
    return lambda run, outside: (shutil.rmtree(run / name), (run / name).write_bytes(b""))


def _metadata(name: str, change: Callable[[dict[str, Any]], object]) -> Plant:
    """A zarr.json that says something else, committed as if it had been written so."""

    def plant(run: Path, outside: Path) -> None:
        path = run / ZARR / name / "zarr.json"
        document = json.loads(path.read_bytes())
        change(document)
        path.write_text(json.dumps(document))
        commit_again(run)

    return plant


def _shape(document: dict[str, Any]) -> None:
    document["shape"][1:] = [10**6, 10**6]


def _chunks(document: dict[str, Any]) -> None:
    for place in (document["chunk_grid"], document["codecs"][0]):
        place["configuration"]["chunk_shape"] = [1, 10**6, 10**6]


def _consistent_shape(document: dict[str, Any]) -> None:
    _shape(document)
    _chunks(document)


def _table(document: dict[str, Any]) -> None:
    document["shape"] = [10**12]
    for place in (document["chunk_grid"], document["codecs"][0]):
        place["configuration"]["chunk_shape"] = [10**12]


def _pcodec_bomb(run: Path, outside: Path) -> None:
    """A chunk of a few hundred bytes, with all its checksums, in which there are 800 MB."""
    chunk = bytes(PCodec(level=8).encode(np.zeros(1 << 24, np.uint16))) * 1
    chunk += google_crc32c.value(chunk).to_bytes(4, "little")
    index = np.array([0, len(chunk)] * 3, "<u8").tobytes()
    (run / ZARR / "context/c/0/0").write_bytes(chunk + index + google_crc32c.value(index).to_bytes(4, "little"))
    commit_again(run)


def _pickles(run: Path, outside: Path) -> None:
    """A group of Zarr's version 2 whose arrays are objects, pickled."""
    shutil.rmtree(run / ZARR)
    (run / ZARR / "context").mkdir(parents=True)
    (run / ZARR / ".zgroup").write_text('{"zarr_format": 2}')
    (run / ZARR / ".zattrs").write_text('{"format_version": 1, "contexts_per_image": 1}')
    codec = {"id": "pickle", "protocol": 2}
    array = {"zarr_format": 2, "shape": [3], "chunks": [3], "dtype": "|O", "fill_value": None, "order": "C"}
    for name in ("context", "context_extent", "patch", "patch_start", "patch_box", "context_scale", "context_offset"):
        (run / ZARR / name).mkdir(exist_ok=True)
        (run / ZARR / name / ".zarray").write_text(json.dumps(array | {"compressor": codec, "filters": [codec]}))
        (run / ZARR / name / "0").write_bytes(pickle.dumps(_Payload(outside / "unpickled")))
    commit_again(run)


def _postscript(run: Path, outside: Path) -> None:
    """A program in place of every stored picture."""
    folder = run / "columns/images/shard.00001.a1.zarr"
    shutil.rmtree(folder)
    source = SourceBox(0.0, 0.0, 20.0, 20.0)
    picture = ContextPicture(jpeg=POSTSCRIPT, extent=(10, 10), source_size=(20, 20), source=source)
    write_pictures(manifests.place_of(folder.parent).new_folder(folder.name), [picture, None, picture])
    commit_again(run, "images")


LINKS: dict[str, Plant] = {
    "run.json is a link": _link("run.json"),
    "the catalogue's folder is a link": _link("catalog"),
    "a table is a link": _link("catalog/shard.*.parquet"),
    "a catalogue is a link": _link("catalog/shard.json"),
    "a column's record is a link": _link("columns/dav2/column.json"),
    "the folder of columns is a link": _link("columns"),
    "a column is a link": _link("columns/dav2"),
    "a manifest is a link": _link(PART),
    "a group is a link": _link(ZARR),
    "an array is a link": _link(f"{ZARR}/context"),
    "a chunk is a link": _link(f"{ZARR}/context/c/0/0"),
    "a link beside the chunks": _new_link(f"{ZARR}/context/c/1"),
    "an attempt is a link": _new_link("columns/dav2/shard.00001.b2.zarr", "folder"),
    "a file aside is a link": _new_link("columns/dav2/.x.json.1.0123456789abcdef"),
    "a link to nowhere": _new_link("notes", "nowhere"),
}
BOMBS: dict[str, Plant] = {
    "a manifest of 3 GB": _sparse(PART, 3 << 30),
    "a zarr.json of 3 GB": _sparse(f"{ZARR}/zarr.json", 3 << 30),
    "a manifest of five million lists": _write(PART, lambda run: b"[" + b"[]," * 5_000_000 + b"[]]"),
    "a manifest of a million wrong images": _many_wrong_images,
    "a failure record of five million objects": _write(
        "columns/dav2/shard.00001.failure.json", lambda run: b"[" + b"{}," * 5_000_000 + b"{}]"
    ),
    "a manifest of as many lists as are read": _write(PART, lambda run: b"[" + b"[]," * 1_000_000 + b"[]]"),
    "a manifest of one wide string": _write(PART, lambda run: b'["' + b"x" * 16_700_000 + "😀".encode() + b'"]'),
    "deep JSON": _write(PART, lambda run: b'{"a":' * 100_000),
    "a deep plan": _run_record(plan={"context_px": 12, "deep": json.loads('{"a":' * 600 + "1" + "}" * 600)}),
    "a deep zarr.json": _write(f"{ZARR}/context/zarr.json", lambda run: b"[" * 60_000),
    "a catalogue of 3 GB": _sparse("catalog/shard.json", 3 << 30),
    "a source of 10^15 images": _change("catalog/shard.json", images=10**15),
    "a deep column": _change("columns/dav2/column.json", configuration=json.loads('{"a":' * 600 + "1" + "}" * 600)),
    "a column's record of 3 GB": _sparse("columns/dav2/column.json", 3 << 30),
    "a column's record of five million lists": _write(
        "columns/dav2/column.json", lambda run: b"[" + b"[]," * 5_000_000 + b"[]]"
    ),
    "10^12 contexts an image": _run_record(plan={"context_px": 12, "contexts_per_image": 10**12}),
    "a context grid of 10^6 pixels": _run_record(plan={"context_px": 10**6}),
    "views of 10^12 pixels": _metadata("context", _shape),
    "chunks of 10^12 pixels": _metadata("context", _chunks),
    "views in chunks of 10^12 pixels": _metadata("context", _consistent_shape),
    "patches of 10^12 pixels": _metadata("patch", _consistent_shape),
    "a table of 10^12 rows": _metadata("patch_scale", _table),
    "a chunk that unpacks to too much": _pcodec_bomb,
}
OTHERS: dict[str, Plant] = {
    "a pipe for run.json": _instead("run.json", os.mkfifo),
    "a pipe for a catalogue": _instead("catalog/shard.json", os.mkfifo),
    "a pipe for a table": _instead("catalog/shard.*.parquet", os.mkfifo),
    "a pipe for a column's record": _instead("columns/dav2/column.json", os.mkfifo),
    "a folder for a column's record": _instead("columns/dav2/column.json", Path.mkdir),
    "a table out of the run": _change("catalog/shard.json", table_sha256="/../../outside/victim"),
    "a source by a path": _change("catalog/shard.json", source="../../outside/victim"),
    "a pipe for a manifest": _instead(PART, os.mkfifo),
    "a pipe for a chunk": _instead(f"{ZARR}/context/c/0/0", os.mkfifo),
    "a pipe for a zarr.json": _instead(f"{ZARR}/context/zarr.json", os.mkfifo),
    "a folder for a chunk": _instead(f"{ZARR}/context/c/0/0", Path.mkdir),
    "a folder for a table": _instead("catalog/shard.*.parquet", Path.mkdir),
    "a file for a column": _file_for_a_folder("columns/dav2"),
    "a file for the folder of columns": _file_for_a_folder("columns"),
    "a file for the catalogue's folder": _file_for_a_folder("catalog"),
    "a path out of the run": _traversal,
    "a group by a path": _part(zarr="../../outside"),
    "pickles": _pickles,
    "PostScript for a picture": _postscript,
    "escapes": _escapes,
    "escapes in a column's record": _escapes_in_a_column,
    "a column and a source named by escapes": _named_by_escapes,
    "a column by a path": _change("columns/dav2/column.json", name="../../outside"),
    "another column's record": lambda run, outside: shutil.copyfile(
        run / "columns/images/column.json", run / "columns/dav2/column.json"
    ),
    "no record of a column": lambda run, outside: (run / "columns/dav2/column.json").unlink(),
}
HOSTILE = LINKS | BOMBS | OTHERS


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything in the folder: mode, time of change, content."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
        )
        for path in sorted([folder, *folder.rglob("*")])
    }
