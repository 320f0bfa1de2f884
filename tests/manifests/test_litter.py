"""Cleaning takes litter, all of it, and never a file that anything vouches for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import manifests
from tests.manifests.small_run import PARTS, fail_part, write_run

SOME_PARTS = st.sets(st.sampled_from(sorted(PARTS)))
OTHERS = ["notes.txt", ".hidden", "columns/dav2/.DS_Store", "columns/dav2/readme.txt", "columns/midas/x.a1.zarr/zarr.json"]


def _contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


@given(committed=SOME_PARTS, failed=SOME_PARTS, damaged=SOME_PARTS, abandoned=SOME_PARTS)
@settings(max_examples=15, deadline=None)
def test_nothing_but_litter_is_ever_removed(
    tmp_path_factory: pytest.TempPathFactory, committed: set[str], failed: set[str], damaged: set[str], abandoned: set[str]
) -> None:
    run = write_run(tmp_path_factory.mktemp("run"), commit=sorted(committed))
    for name in OTHERS:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"not ours")
    for part in failed - committed:
        fail_part(run, "dav2", part)
    for part in damaged & committed:
        path = manifests.manifest_path(run, "dav2", part)
        path.write_bytes(path.read_bytes()[:-40])
    kept = _contents(run)
    litter = []
    for part in failed & committed - damaged:
        fail_part(run, "dav2", part)
        litter.append(f"columns/dav2/{part}.failure.json")
    for part in abandoned - (damaged & committed):
        litter.append(f"columns/dav2/{part}.b2.zarr")
        (run / litter[-1] / "context").mkdir(parents=True)
        (run / litter[-1] / "zarr.json").write_bytes(b"half a fi")
    for i, folder in enumerate(("", "catalog/", "columns/images/") if committed else ("", "catalog/")):
        litter += [f"{folder}.x.json.{i}.0123456789abcdef", f"{folder}.x.json.claim"]
        for name in litter[-2:]:
            (run / name).write_bytes(b"half a fi")
    assert sorted(manifests.clean(run, dry_run=True)) == sorted(litter)
    assert sorted(manifests.clean(run)) == sorted(litter)
    assert _contents(run) == kept | {".driver.lock": b""}
    assert manifests.clean(run) == []


def test_a_table_that_no_catalogue_names_is_litter(tmp_path: Path) -> None:
    """Their command died before it wrote the catalogue; of a link with such a name only the link is litter."""
    run = write_run(tmp_path / "run")
    tables = ["catalog/shard.0123456789abcdef.parquet", "catalog/new.v2.fedcba9876543210.parquet"]
    for name in tables:
        (run / name).write_bytes(b"half a ta")
    (tmp_path / "kept").write_bytes(b"kept")
    link = "catalog/photos.v1.0123456789abcdef.parquet"
    (run / link).symlink_to(tmp_path / "kept")
    for name in ("catalog/notes.parquet", "catalog/shard.0123.parquet", "catalog/shard.0123456789abcdef.parquet.old"):
        (run / name).write_bytes(b"not ours")
    kept = _contents(run)
    assert [item.where for item in manifests.verify(run)] == [link]  # as damage only links are named
    assert sorted(manifests.clean(run, dry_run=True)) == sorted([*tables, link])
    assert sorted(manifests.clean(run)) == sorted([*tables, link])
    assert _contents(run) == {name: content for name, content in kept.items() if name not in (*tables, link)} | {
        ".driver.lock": b""
    }
    assert (tmp_path / "kept").read_bytes() == b"kept"
    assert (manifests.clean(run), manifests.verify(run)) == ([], [])


def test_no_table_is_litter_while_a_catalogue_cannot_be_read(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    manifests.catalogue_path(run, "shard").write_bytes(b"{")
    (run / "catalog/new.0123456789abcdef.parquet").write_bytes(b"half a ta")
    before = _contents(run)
    with pytest.raises(manifests.InvalidRecordError, match=r"shard\.json"):
        manifests.clean(run)
    assert {name: content for name, content in _contents(run).items() if name != ".driver.lock"} == before


def test_what_a_damaged_manifest_may_name_is_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "columns/dav2/shard.00000.b2.zarr").mkdir()
    manifests.manifest_path(run, "dav2", "shard.00000").write_bytes(b"{}")
    fail_part(run, "dav2", "shard.00000")
    assert manifests.clean(run) == []


def test_a_run_that_cannot_be_read_is_not_cleaned(tmp_path: Path) -> None:
    run = write_run(tmp_path, commit=[])
    (run / "columns/dav2/shard.00000.b2.zarr").mkdir(parents=True)
    (run / "run.json").write_bytes(b"{}")
    with pytest.raises(manifests.InvalidRecordError):
        manifests.clean(run)
    assert (run / "columns/dav2/shard.00000.b2.zarr").is_dir()
