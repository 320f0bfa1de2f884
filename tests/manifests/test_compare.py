"""Equal runs compare equal; of others every difference is named by its place."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import manifests
from tests.manifests.small_run import file_records, write_run

PART = "columns/dav2/shard.00001.json"


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return write_run(tmp_path / "a"), write_run(tmp_path / "b")


def _rewrite_part(run: Path, change: Callable[[manifests.PartManifest], dict[str, Any]]) -> None:
    part = manifests.load_part(run, "dav2", "shard.00001")
    (run / PART).write_bytes(manifests.to_json(dataclasses.replace(part, **change(part))))


def _rewrite_run(run: Path, **changes: Any) -> None:
    record = manifests.parse_run((run / "run.json").read_bytes(), "run.json")
    (run / "run.json").write_bytes(manifests.to_json(dataclasses.replace(record, **changes)))


def test_runs_that_differ_in_when_where_and_by_which_attempt_they_were_made_are_the_same(runs: tuple[Path, Path]) -> None:
    a, b = runs
    folder = manifests.column_dir(b, "dav2")
    (folder / "shard.00001.a1.zarr").rename(folder / "shard.00001.a2.zarr")
    volatile = manifests.Volatile(attempt="a2", host="elsewhere", seconds=99, created_at="2026-01-01T00:00:00Z", batch_size=1)
    _rewrite_part(
        b,
        lambda part: {
            "volatile": volatile,
            "zarr": "shard.00001.a2.zarr",
            "files": file_records(folder / "shard.00001.a2.zarr"),
        },
    )
    _rewrite_run(b, configuration={"workers": 4})
    assert manifests.compare(a, b) == []
    assert manifests.verify(b) == []


def test_every_setting_that_differs_is_named_with_both_values(runs: tuple[Path, Path]) -> None:
    a, b = runs
    record = manifests.load_column(b, "dav2")
    fingerprint = {**record.fingerprint, "weights_sha256": "b" * 64, "dtype": "bfloat16"}
    changed = dataclasses.replace(record, fingerprint=fingerprint, configuration={"checkpoint": "elsewhere"})
    manifests.column_record_path(b, "dav2").write_bytes(manifests.to_json(changed))
    _rewrite_run(b, seed=8, plan={"context_px": 64})
    for column in ("images", "dav2"):
        manifests.manifest_path(b, column, "photos.v1.00000").unlink()
        manifests.manifest_path(a, column, "photos.v1.00000").unlink()
    manifests.catalogue_path(b, "photos.v1").unlink()
    assert manifests.compare(a, b) == [
        ("run.json", "seed", "7", "8"),
        ("run.json", "plan.context_px", "12", "64"),
        ("run.json", "sources.photos.v1.kind", '"tar"', "nothing"),
        ("run.json", "sources.photos.v1.images", "2", "nothing"),
        ("run.json", "columns.dav2.fingerprint.weights_sha256", f'"{"a" * 64}"', f'"{"b" * 64}"'),
        ("run.json", "columns.dav2.fingerprint.dtype", "nothing", '"bfloat16"'),
    ]


def test_parts_images_and_label_bytes_that_differ_are_named(runs: tuple[Path, Path]) -> None:
    a, b = runs
    reason = manifests.Reason(kind="timed_out", message="60 s")
    _rewrite_part(
        b,
        lambda part: {
            "images": (dataclasses.replace(part.images[0], status="rejected", problem=reason), *part.images[1:]),
            "files": (dataclasses.replace(part.files[0], sha256="0" * 64), *part.files[1:]),
            "statistics": dataclasses.replace(part.statistics, max=9.0),
        },
    )
    manifests.manifest_path(b, "images", "photos.v1.00000").unlink()
    shutil.rmtree(manifests.column_dir(a, "images") / "shard.00000.a1.zarr")  # a matter for `verify`
    found = manifests.compare(a, b)
    key = "shard/Straße 003"
    assert [(item.where, item.field) for item in found] == [
        (PART, f"images.{key}.status"),
        (PART, f"images.{key}.problem"),
        (PART, "files.context/c/0/0"),
        (PART, "statistics.max"),
        (PART, f"images.{key}.problem.kind"),
        (PART, f"images.{key}.problem.message"),
        ("columns/images/photos.v1.00000.json", ""),
    ]
    assert found[-1][2:] == ("committed", "nothing")
    assert {(item.where, item.field, item.b, item.a) for item in manifests.compare(b, a)} == {tuple(item) for item in found}


def test_sources_that_read_differently_are_named(tmp_path: Path) -> None:
    problem = manifests.Problem(kind="truncated", where="offset 512", message="cut")
    found = manifests.compare(write_run(tmp_path / "a"), write_run(tmp_path / "b", problems=[problem]))
    assert {item.where for item in found} == {"catalog/shard.json"}
    assert ("catalog/shard.json", "problems[0].kind", "nothing", '"truncated"') in found


def test_another_source_that_a_source_extends_is_named(runs: tuple[Path, Path]) -> None:
    a, b = runs
    changed = dataclasses.replace(manifests.load_catalogue(b, "shard"), extends="photos.v1", location="/elsewhere")
    manifests.catalogue_path(b, "shard").write_bytes(manifests.to_json(changed))
    assert manifests.compare(a, b) == [("catalog/shard.json", "extends", "null", '"photos.v1"')]


def test_a_record_that_cannot_be_read_is_no_difference_but_an_error(runs: tuple[Path, Path]) -> None:
    (runs[1] / PART).write_bytes(b"{}")
    with pytest.raises(manifests.InvalidRecordError, match=r"shard\.00001\.json"):
        manifests.compare(*runs)
