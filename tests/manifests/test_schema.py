"""Records: golden ones are read, and every kind of wrong one is refused with all that is wrong with it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import manifests
from manifests.schema import CHECKSUM_KEY, has_right_checksum

# Written out by hand from docs/format.md, key by key.
GOLDEN: dict[str, Any] = {
    "run": {
        "format_version": 2,
        "kind": "run",
        "seed": 0,
        "part_size": 64,
        "plan": {"context": "whole", "sizes_px": [560, 644.5], "nested": {"none": None}},
        "configuration": {},
    },
    "column": {
        "format_version": 2,
        "kind": "column",
        "name": "dav2",
        "depth_space": "disparity_metric",
        "fingerprint": {"a": 1, "b": 0.5, "c": "x", "d": None, "e": True},
        "configuration": {"checkpoint": "/models/dav2", "steps": 4},
    },
    "catalogue": {
        "format_version": 2,
        "kind": "catalogue",
        "source": "sa_000",
        "location": "/d/sa_000.tar",
        "source_kind": "tar",
        "size_bytes": 10240,
        "images": 2,
        "rows_sha256": "b" * 64,
        "table_sha256": "0" * 64,
        "extends": "sa",
        "problems": [{"kind": "truncated", "where": "offset 5120", "message": "no end-of-archive blocks"}],
    },
    "part": {
        "format_version": 2,
        "kind": "part",
        "column": "dav2",
        "part": "sa_000.00000",
        "fingerprint": {"seed": 0},
        "zarr": "sa_000.00000.x1.zarr",
        "images": [
            {"key": "日本/1", "status": "labelled", "problem": None, "content_sha256": "a" * 64},
            {
                "key": "b",
                "status": "rejected",
                "problem": {"kind": "too_small", "message": "20 x 30 pixels"},
                "content_sha256": None,
            },
        ],
        "files": [
            {"path": "sa_000.00000.x1.zarr/context/c/0", "size_bytes": 10, "sha256": "1" * 64},
            {"path": "sa_000.00000.x1.zarr/zarr.json", "size_bytes": 0, "sha256": "2" * 64},
        ],
        "statistics": {
            "views": 5,
            "pixels": 100,
            "label_bytes": 200,
            "min": 0,
            "max": 2.5,
            "mean": 1.0,
            "max_quantisation_error": 1e-5,
        },
        "depth_space": "disparity_affine_invariant",
        "licence": None,
        "versions": {"torch": "2.13.0"},
        "volatile": {
            "attempt": "x1",
            "host": "node",
            "seconds": 1.5,
            "created_at": "2025-01-01T00:00:00Z",
            "batch_size": 4,
            "device": "cpu",
        },
        "rows": [0, 2],
    },
    "failure": {
        "format_version": 2,
        "kind": "failure",
        "column": "dav2",
        "part": "sa_000.00000",
        "attempts": 3,
        "problem": {"kind": "crashes_worker", "message": "signal 9"},
        "images": 64,
    },
}
PARSE: dict[str, Callable[[bytes, str], Any]] = {
    "run": manifests.parse_run,
    "column": manifests.parse_column,
    "catalogue": manifests.parse_catalogue,
    "part": manifests.parse_part,
    "failure": manifests.parse_failure,
}
VALIDATE = {
    "run": manifests.validate_run,
    "column": manifests.validate_column,
    "catalogue": manifests.validate_catalogue,
    "part": manifests.validate_part,
    "failure": manifests.validate_failure,
}


def _parse(kind: str, document: object) -> Any:
    return PARSE[kind](json.dumps(document).encode(), "somewhere.json")


@pytest.mark.parametrize("kind", GOLDEN)
def test_a_record_as_the_format_describes_it_is_read(kind: str) -> None:
    assert VALIDATE[kind](GOLDEN[kind]) == []
    assert dataclasses.asdict(_parse(kind, GOLDEN[kind])).keys() | {"format_version", "kind"} == GOLDEN[kind].keys()


@pytest.mark.parametrize("kind", GOLDEN)
def test_what_is_written_has_the_documented_layout_and_is_read_back_the_same(kind: str) -> None:
    record = _parse(kind, GOLDEN[kind])
    raw = manifests.to_json(record)
    document = json.loads(raw)
    assert raw == (json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()
    assert PARSE[kind](raw, "again") == record
    assert (
        document.pop(CHECKSUM_KEY) == hashlib.sha256(raw.replace(json.loads(raw)[CHECKSUM_KEY].encode(), b"0" * 64)).hexdigest()
    )
    assert document == GOLDEN[kind]


def _put(*path_and_value: Any) -> Callable[[dict[str, Any]], None]:
    *path, last, value = path_and_value

    def change(document: dict[str, Any]) -> None:
        target: Any = document
        for step in path:
            target = target[step]
        target[last] = value

    return change


def _drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        target: Any = document
        for step in path[:-1]:
            target = target[step]
        del target[path[-1]]

    return change


def _both(*changes: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda document: [change(document) for change in changes]


ERRORS: list[tuple[str, Callable[[dict[str, Any]], object], str, str]] = [
    ("run", _put("format_version", 3), "format_version", "wrong_version"),
    ("run", _put("format_version", True), "format_version", "wrong_version"),
    ("run", _put("format_version", 2.0), "format_version", "wrong_version"),
    ("run", _drop("format_version"), "format_version", "missing_key"),
    ("run", _put("kind", "part"), "kind", "wrong_value"),
    ("failure", _drop("kind"), "kind", "missing_key"),
    ("run", _put("seed", 1.0), "seed", "wrong_type"),
    ("run", _put("seed", True), "seed", "wrong_type"),
    ("run", _put("seed", "0"), "seed", "wrong_type"),
    ("run", _put("part_size", 0), "part_size", "wrong_value"),
    ("run", _put("extra", 1), "extra", "unknown_key"),
    ("run", _drop("plan"), "plan", "missing_key"),
    ("run", _put("plan", []), "plan", "wrong_type"),
    ("column", _put("name", "../up"), "name", "wrong_value"),
    ("column", _put("name", ".hidden"), "name", "wrong_value"),
    ("column", _put("name", "a\n"), "name", "wrong_value"),
    ("column", _put("name", ""), "name", "wrong_value"),
    ("column", _put("depth_space", None), "depth_space", "wrong_value"),
    ("column", _put("name", "images"), "depth_space", "wrong_value"),
    ("column", _put("depth_space", "disparity"), "depth_space", "wrong_value"),
    ("column", _put("fingerprint", "a", [1]), "fingerprint.a", "wrong_type"),
    ("column", _drop("configuration"), "configuration", "missing_key"),
    ("catalogue", _put("source_kind", "two words"), "source_kind", "wrong_value"),
    ("catalogue", _put("source", "../up"), "source", "wrong_value"),
    ("catalogue", _put("images", -1), "images", "wrong_value"),
    ("catalogue", _put("rows_sha256", "A" * 64), "rows_sha256", "wrong_value"),
    ("catalogue", _put("table_sha256", "0" * 63), "table_sha256", "wrong_value"),
    ("catalogue", _put("extends", "a/b"), "extends", "wrong_value"),
    ("catalogue", _put("problems", 0, None), "problems[0]", "wrong_type"),
    ("catalogue", _put("size_bytes", None), "size_bytes", "wrong_type"),
    ("catalogue", _put("problems", 0, "kind", "two words"), "problems[0].kind", "wrong_value"),
    ("catalogue", _drop("problems", 0, "where"), "problems[0].where", "missing_key"),
    ("part", _both(_put("files", []), _put("zarr", "other.00000.x1.zarr")), "zarr", "wrong_value"),
    ("part", _both(_put("files", []), _put("zarr", "sa_000.00000.x1")), "zarr", "wrong_value"),
    ("part", _put("zarr", "a/../../b.zarr"), "zarr", "wrong_value"),
    ("part", _put("images", 0, "status", "failed"), "images[0].status", "wrong_value"),
    ("part", _put("images", 0, "problem", {"kind": "x", "message": ""}), "images[0].problem", "wrong_value"),
    ("part", _put("images", 1, "problem", None), "images[1].problem", "wrong_value"),
    ("part", _put("images", 1, "problem", "too small"), "images[1].problem", "wrong_type"),
    ("part", _put("images", 1, "problem", "code", 1), "images[1].problem.code", "unknown_key"),
    ("part", _put("files", 0, "path", "/etc/passwd"), "files[0].path", "unsafe_path"),
    ("part", _put("files", 0, "path", "sa_000.00000.x1.zarr/../../run.json"), "files[0].path", "unsafe_path"),
    ("part", _put("files", 0, "path", "sa_000.00000.x1.zarr\\..\\x"), "files[0].path", "unsafe_path"),
    ("part", _put("files", 0, "path", "sa_000.00000.x1.zarr//x"), "files[0].path", "unsafe_path"),
    ("part", _put("files", 0, "path", ""), "files[0].path", "unsafe_path"),
    ("part", _put("files", 1, "path", "sa_000.00000.x2.zarr/0"), "files[1].path", "outside_zarr"),
    ("part", _put("files", 1, "path", "sa_000.00000.x1.zarr/a"), "files[1].path", "not_sorted"),
    ("part", _put("files", 1, "path", "sa_000.00000.x1.zarr/context/c/0"), "files[1].path", "not_sorted"),
    ("part", _put("statistics", "min", "0"), "statistics.min", "wrong_type"),
    ("part", _put("statistics", "min", float("nan")), "statistics.min", "wrong_type"),
    ("part", _put("statistics", "max", float("inf")), "statistics.max", "wrong_type"),
    ("part", _put("statistics", "max", 10**400), "statistics.max", "wrong_type"),
    ("part", _put("statistics", "pixels", False), "statistics.pixels", "wrong_type"),
    ("part", _put("fingerprint", "seed", float("-inf")), "fingerprint.seed", "wrong_type"),
    ("part", _put("versions", "torch", 2), "versions.torch", "wrong_type"),
    ("part", _drop("volatile", "host"), "volatile.host", "missing_key"),
    ("failure", _put("attempts", 0), "attempts", "wrong_value"),
    ("failure", _put("problem", None), "problem", "wrong_type"),
    ("failure", _put("column", "a b"), "column", "wrong_value"),
]


@pytest.mark.parametrize(("kind", "change", "path", "problem_kind"), ERRORS)
def test_each_mistake_is_the_only_problem_and_has_its_place_and_kind(
    kind: str, change: Callable[[dict[str, Any]], object], path: str, problem_kind: str
) -> None:
    document = copy.deepcopy(GOLDEN[kind])
    change(document)
    assert [(problem.path, problem.kind) for problem in VALIDATE[kind](document)] == [(path, problem_kind)]
    with pytest.raises(manifests.InvalidRecordError, match=r"somewhere\.json"):
        _parse(kind, document)


def test_all_problems_are_reported_at_once() -> None:
    document = copy.deepcopy(GOLDEN["run"])
    for change in (_put("seed", None), _put("extra", 1), _drop("plan"), _put("part_size", 0)):
        change(document)
    with pytest.raises(manifests.InvalidRecordError) as caught:
        _parse("run", document)
    assert {problem.path for problem in caught.value.problems} == {"seed", "extra", "plan", "part_size"}
    assert "4 problems" in str(caught.value)
    assert all(str(problem) in str(caught.value) for problem in caught.value.problems)
    assert "found null, expected an integer" in str(caught.value)


NOT_JSON = [b"", b"{", b"\xff\xfe{}", b"\x00", "{}".encode("utf-16"), b"1" * 5000, b"[" * 100_000]
NOT_JSON.append(b'{"a": ' * 900 + b"1" + b"}" * 900)  # JSON, but nothing of ours nests so deep


@pytest.mark.parametrize("kind", GOLDEN)
@pytest.mark.parametrize("raw", NOT_JSON)
def test_what_is_not_json_is_refused_and_nothing_else_is_raised(kind: str, raw: bytes) -> None:
    with pytest.raises(manifests.InvalidRecordError):
        PARSE[kind](raw, "x")


@pytest.mark.parametrize("document", [None, [], 1, "run"])
def test_json_that_is_not_an_object_is_refused(document: object) -> None:
    assert [problem.kind for problem in manifests.validate_run(document)] == ["wrong_type"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(GOLDEN["part"])) | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.sampled_from(sorted(GOLDEN)), st.data())
def test_any_json_in_any_place_is_either_valid_or_described(kind: str, data: st.DataObject) -> None:
    document = copy.deepcopy(GOLDEN[kind])
    document[data.draw(st.sampled_from(sorted(document)))] = data.draw(JSON)
    problems = VALIDATE[kind](document)
    if problems:
        with pytest.raises(manifests.InvalidRecordError):
            _parse(kind, document)
    else:
        manifests.to_json(_parse(kind, document))


@pytest.mark.parametrize("kind", GOLDEN)
def test_every_flipped_bit_of_a_written_record_is_noticed(kind: str) -> None:
    raw = manifests.to_json(_parse(kind, GOLDEN[kind]))
    for bit in range(0, 8 * len(raw), 3 if len(raw) < 800 else 11):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(manifests.InvalidRecordError):
            PARSE[kind](bytes(flipped), "x")
        assert not has_right_checksum(bytes(flipped))


def test_a_record_that_could_not_be_read_back_is_not_written() -> None:
    run = _parse("run", GOLDEN["run"])
    with pytest.raises(manifests.InvalidRecordError, match="part_size"):
        manifests.to_json(dataclasses.replace(run, part_size=0))
    with pytest.raises(ValueError, match="JSON compliant"):
        manifests.to_json(dataclasses.replace(run, plan={"x": float("nan")}))
    with pytest.raises(TypeError):
        manifests.to_json(dataclasses.replace(run, plan={"x": Path("a")}))


def test_a_key_that_is_not_utf_8_survives() -> None:
    key = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")  # as tarfile hands over such a member's name
    part = _parse("part", GOLDEN["part"])
    images = (manifests.ImageOutcome(key=key, status="labelled"), *part.images)
    raw = manifests.to_json(dataclasses.replace(part, images=images))
    assert manifests.parse_part(raw, "x").images[0].key == key


def test_the_error_crosses_a_process_border_whole() -> None:
    with pytest.raises(manifests.InvalidRecordError) as caught:
        manifests.parse_run(b"{}", "run.json")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.problems, again.where) == (str(caught.value), caught.value.problems, "run.json")
