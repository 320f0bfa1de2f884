"""The JSON records of a run: what may stand in them, and nothing else.

Turns records into bytes and bytes into records. Promises: `parse_*(to_json(record))` gives the record back; bytes that
are not a record as described in docs/format.md are refused with *all* their problems at once; a record that could not be
read back is never written. Every record written here carries `record_sha256`, the sha256 of the file with 64 zeros in
that place, so that any changed byte is noticed; a record without that key is read on the strength of its content alone.

The dataclasses below are the whole description; `manifests.checker` holds a decoded file against their annotations.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from manifests.checker import MAX_PROBLEMS, Rule, Scalar, TooManyProblemsError, ValidationProblem, printable, read_value, shown
from manifests.errors import DistillError

FORMAT_VERSION = 2
CHECKSUM_KEY = "record_sha256"
MAX_RECORD_BYTES = 1 << 24
"""Of a record as a file, 16 MiB: room for some 50,000 images of a part or problems of a source. Decoded, its text may take
eight times as much."""
_MAX_VALUES = 1 << 21  # what a few bytes of JSON can become is many times as large in memory
_MAX_OF_PLAN = {"contexts_per_image": 4096, "context_px": 8192}  # what is made for each image, and the side of it
MAX_PARTS = 500_000
"""Of a run: they are listed in memory."""
_CHECKSUM = re.compile(rb'\n  "%s": "([0-9a-f]{64})"' % CHECKSUM_KEY.encode())


class InvalidRecordError(DistillError, ValueError):
    """A record that cannot be trusted; `problems` holds everything wrong with it, `where` names the file."""

    def __init__(self, where: str, problems: Sequence[ValidationProblem]) -> None:
        super().__init__(where, problems)  # the arguments as they came, so that the error survives pickling
        self.where, self.problems = where, tuple(problems)

    def __str__(self) -> str:
        lines = "".join(f"\n  - {printable(str(problem))}" for problem in self.problems)
        count = f"{len(self.problems)} problem{'s' * (len(self.problems) != 1)}"
        return (
            f"{printable(self.where)}: not a valid record, {count}:{lines}\n"
            "It is damaged, or something else wrote it: `python -m manifests verify RUN` lists all damage of the run."
        )


def _is_safe_path(path: str) -> bool:
    return not any(part in ("", ".", "..") for part in path.split("/")) and not set(path) & {"\\", "\0", ":"}


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Name = Annotated[str, Rule(lambda text: bool(_NAME.fullmatch(text)), "a name like [A-Za-z0-9][A-Za-z0-9_.-]*")]
Sha256 = Annotated[str, Rule(lambda text: bool(_SHA256.fullmatch(text)), "64 hexadecimal digits")]
SafePath = Annotated[str, Rule(_is_safe_path, "a relative path with '/' and without '..'", "unsafe_path")]
Count = Annotated[int, Rule(lambda number: number >= 0, "an integer >= 0")]
Positive = Annotated[int, Rule(lambda number: number >= 1, "an integer >= 1")]
DepthSpace = Literal["disparity_affine_invariant", "depth_affine_invariant", "depth_metric", "disparity_metric"]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """run.json: what never changes, whatever sources and columns are added to the run."""

    KIND: ClassVar[str] = "run"
    seed: int
    part_size: Positive
    plan: Mapping[str, Any]
    configuration: Mapping[str, Any]

    def inconsistencies(self) -> Iterator[ValidationProblem]:
        for key, most in _MAX_OF_PLAN.items():
            if key in self.plan and not (type(value := self.plan[key]) is int and 1 <= value <= most):
                message = f"found {shown(value)}, expected an integer from 1 to {most}"
                yield ValidationProblem(f"plan.{key}", "wrong_value", message)


@dataclass(frozen=True, kw_only=True)
class ColumnRecord:
    """columns/<column>/column.json: what decides a column's content, but for the images it is made of. `depth_space` is null
    for `images`; `configuration` has the teacher as it was resolved, empty for `images`."""

    KIND: ClassVar[str] = "column"
    name: Name
    depth_space: DepthSpace | None
    fingerprint: Mapping[str, Scalar]
    configuration: Mapping[str, Any]

    def inconsistencies(self) -> Iterator[ValidationProblem]:
        if (self.name == "images") != (self.depth_space is None):
            expected = "null for 'images'" if self.name == "images" else f"a depth space for {self.name!r}"
            yield ValidationProblem("depth_space", "wrong_value", f"found {self.depth_space!r}, expected {expected}")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something found wrong with a source while it was catalogued."""

    kind: Name
    where: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """catalog/<source>.json: what was found in one source when it was added to the run. `table_sha256` is the digest of its
    parquet file, `rows_sha256` of every image's key, place and size in it; `extends` names the source of the same folder that
    was there before these files were."""

    KIND: ClassVar[str] = "catalogue"
    source: Name
    location: str
    source_kind: Name
    size_bytes: Count
    images: Count
    rows_sha256: Sha256
    table_sha256: Sha256
    problems: tuple[Problem, ...]
    extends: Name | None = None


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why an image was rejected, or a part failed."""

    kind: Name
    message: str


@dataclass(frozen=True, kw_only=True)
class ImageOutcome:
    """How one catalogued image ended in a column; rejected images, and only those, have a problem. `not_drawn`: of a column
    that has the labels of one training's draw alone, which sees nothing of this image. `content_sha256` is the
    digest of the image file's bytes as the column `images` read them; null in teachers' columns and where it could not be
    read."""

    key: str
    status: Literal["labelled", "rejected", "not_drawn"]
    problem: Reason | None = None
    content_sha256: Sha256 | None = None

    def inconsistencies(self) -> Iterator[ValidationProblem]:
        if (self.status == "rejected") != (self.problem is not None):
            message = f"found {self.problem!r}, expected a problem for a rejected image, null for others"
            yield ValidationProblem("problem", "wrong_value", message)


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file of a part; `path` is relative to the column's folder."""

    path: SafePath
    size_bytes: Count
    sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class PartStatistics:
    """Over all valid label pixels of a part, in the column's depth space; the values are null for `images`, and where no
    pixel is valid."""

    views: Count
    pixels: Count
    label_bytes: Count
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    max_quantisation_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Volatile:
    """What may differ between two otherwise equal runs; `created_at` is ISO 8601, UTC. `batch_size` is the one that the part
    ended with, after any halving for want of memory; null where no batches were made."""

    attempt: Name
    host: str
    seconds: float
    created_at: str
    batch_size: Positive | None = None
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class PartManifest:
    """columns/<column>/<part>.json: the commit record of a part. `fingerprint` is the column's and its source's rows_sha256.
    `rows` are the rows that were to be labelled, in a column that has the labels of one training's draw alone; null is all."""

    KIND: ClassVar[str] = "part"
    column: Name
    part: Name
    fingerprint: Mapping[str, Scalar]
    zarr: Name
    images: tuple[ImageOutcome, ...]
    files: tuple[FileRecord, ...]
    statistics: PartStatistics
    depth_space: DepthSpace | None
    licence: str | None
    versions: Mapping[str, str]
    volatile: Volatile
    rows: tuple[Count, ...] | None = None

    def inconsistencies(self) -> Iterator[ValidationProblem]:
        if not (self.zarr.startswith(f"{self.part}.") and self.zarr.endswith(".zarr")):
            yield ValidationProblem("zarr", "wrong_value", f"found {self.zarr!r}, expected '{self.part}.<attempt>.zarr'")
        if self.rows is not None and any(b <= a for a, b in itertools.pairwise(self.rows)):
            yield ValidationProblem("rows", "not_sorted", "found another order, expected rising numbers, each once")
        for i, file in enumerate(self.files):
            if not file.path.startswith(f"{self.zarr}/"):
                message = f"found {file.path!r}, expected a path under {self.zarr!r}"
                yield ValidationProblem(f"files[{i}].path", "outside_zarr", message)
            if i and file.path <= self.files[i - 1].path:
                message = f"found {file.path!r} after {self.files[i - 1].path!r}, expected files sorted by path, each once"
                yield ValidationProblem(f"files[{i}].path", "not_sorted", message)


@dataclass(frozen=True, kw_only=True)
class FailureRecord:
    """columns/<column>/<part>.failure.json: why the last attempts at a part of `images` images failed."""

    KIND: ClassVar[str] = "failure"
    column: Name
    part: Name
    attempts: Positive
    problem: Reason
    images: Count


Record = RunRecord | ColumnRecord | Catalogue | PartManifest | FailureRecord
RecordT = TypeVar("RecordT", bound=Record)


def to_json(record: Record) -> bytes:
    """The record as it stands on disk: UTF-8, sorted keys, two-space indent, a final newline.

    Raises InvalidRecordError where the record could not be read back, ValueError for NaN and infinities, TypeError for
    values JSON does not have.
    """
    header = {"format_version": FORMAT_VERSION, "kind": record.KIND, CHECKSUM_KEY: "0" * 64}
    document = dataclasses.asdict(record) | header
    text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A tar member's name that is not UTF-8 comes as lone surrogates: backslashreplace happens to write JSON's escapes.
    blank = text.encode("utf-8", "backslashreplace")
    start, end = _checksum_span(blank)
    raw = blank[:start] + hashlib.sha256(blank).hexdigest().encode() + blank[end:]
    _parse(type(record), raw, f"the {record.KIND} record to be written")
    return raw


def has_right_checksum(raw: bytes) -> bool:
    """Whether these bytes carry a checksum, and are exactly what `to_json` once wrote."""
    start, end = _checksum_span(raw)
    return end > 0 and hashlib.sha256(raw[:start] + b"0" * 64 + raw[end:]).hexdigest().encode() == raw[start:end]


def _checksum_span(raw: bytes) -> tuple[int, int]:
    found = _CHECKSUM.search(raw)
    return found.span(1) if found else (0, 0)


def parse_run(raw: bytes, where: str) -> RunRecord:
    """The content of run.json. Raises InvalidRecordError; `where` names the file in its message."""
    return _parse(RunRecord, raw, where)


def parse_column(raw: bytes, where: str) -> ColumnRecord:
    """The content of a column's record. Raises InvalidRecordError."""
    return _parse(ColumnRecord, raw, where)


def parse_catalogue(raw: bytes, where: str) -> Catalogue:
    """The content of catalog/<source>.json. Raises InvalidRecordError."""
    return _parse(Catalogue, raw, where)


def parse_part(raw: bytes, where: str) -> PartManifest:
    """The content of a part's manifest. Raises InvalidRecordError."""
    return _parse(PartManifest, raw, where)


def parse_failure(raw: bytes, where: str) -> FailureRecord:
    """The content of a failure record. Raises InvalidRecordError."""
    return _parse(FailureRecord, raw, where)


def validate_run(document: object) -> list[ValidationProblem]:
    """All problems of a decoded run.json; empty when it is valid. A file of another version has only that problem."""
    return _read_record(document, RunRecord)[1]


def validate_column(document: object) -> list[ValidationProblem]:
    """All problems of a decoded column record."""
    return _read_record(document, ColumnRecord)[1]


def validate_catalogue(document: object) -> list[ValidationProblem]:
    """All problems of a decoded catalogue."""
    return _read_record(document, Catalogue)[1]


def validate_part(document: object) -> list[ValidationProblem]:
    """All problems of a decoded part manifest."""
    return _read_record(document, PartManifest)[1]


def validate_failure(document: object) -> list[ValidationProblem]:
    """All problems of a decoded failure record."""
    return _read_record(document, FailureRecord)[1]


def _parse(record_type: type[RecordT], raw: bytes, where: str) -> RecordT:
    _refuse_large(raw, where)
    try:
        document = json.loads(raw.decode("utf-8"))
        record, problems = _read_record(document, record_type)
    except (ValueError, RecursionError) as error:
        raise InvalidRecordError(where, [ValidationProblem("", "not_json", f"expected JSON: {error}")]) from error
    if isinstance(document, dict) and CHECKSUM_KEY in document and not has_right_checksum(raw):
        message = "the file's bytes are not those that were written: damaged, or edited by hand"
        problems.insert(0, ValidationProblem(CHECKSUM_KEY, "wrong_checksum", message))
    if problems:
        raise InvalidRecordError(where, problems)
    return record


def _refuse_large(raw: bytes, where: str) -> None:
    found = [(len(raw), MAX_RECORD_BYTES, "bytes"), (sum(map(raw.count, (b",", b"[", b"{"))), _MAX_VALUES, "values")]
    for number, limit, what in found:
        if number > limit:
            message = f"found {number} {what}, expected at most {limit}"
            raise InvalidRecordError(where, [ValidationProblem("", "too_large", message)])


def _read_record(document: object, record_type: type[RecordT]) -> tuple[RecordT, list[ValidationProblem]]:
    """The record and the problems; the record is to be used only where there are none."""
    problems: list[ValidationProblem] = []
    body = document
    if isinstance(document, dict):
        header = {"format_version": FORMAT_VERSION, "kind": record_type.KIND}
        for key, expected in header.items():
            found, kind = document.get(key), "wrong_version" if key == "format_version" else "wrong_value"
            if key not in document:
                problems.append(ValidationProblem(key, "missing_key", f"is missing, expected {expected!r}"))
            elif found != expected or type(found) is not type(expected):
                problems.append(ValidationProblem(key, kind, f"found {shown(found)}, expected {expected!r}"))
                return typing.cast(RecordT, None), problems  # held against the wrong description, the rest would be noise
        body = {key: value for key, value in document.items() if key not in (*header, CHECKSUM_KEY)}
    try:
        return read_value(body, record_type, problems), problems
    except TooManyProblemsError:
        problems.append(ValidationProblem("", "wrong_value", f"more than {MAX_PROBLEMS} problems; the others are not listed"))
        return typing.cast(RecordT, None), problems
