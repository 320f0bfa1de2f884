"""Every kind of damage is named, whatever else is damaged; what is merely unfinished is not."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import manifests
from manifests.verify import count_checks, examine
from tests.manifests.small_run import fail_part, write_run

PART = "columns/dav2/shard.00001"
ZARR = f"{PART}.a1.zarr"


Change = Callable[[Path], object]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def _append(path: str) -> Change:
    return lambda run: (run / path).write_bytes((run / path).read_bytes() + b" ")


def _change_first_byte(path: str) -> Change:
    def change(run: Path) -> None:
        first, *rest = (run / path).read_bytes()
        (run / path).write_bytes(bytes([first ^ 1, *rest]))

    return change


def _remove(path: str) -> Change:
    return lambda run: shutil.rmtree(run / path) if (run / path).is_dir() else (run / path).unlink()


def _copy(source: str, target: str) -> Change:
    return lambda run: shutil.copyfile(run / source, run / target)


def _create(path: str) -> Change:
    return lambda run: manifests.write_exclusively(run / path, b"x")


def _rewrite(change: Callable[[manifests.PartManifest], dict[str, Any]]) -> Change:
    """A sound manifest, checksum and all, that says something else."""

    def rewrite(run: Path) -> None:
        part = manifests.load_part(run, "dav2", "shard.00001")
        changed = dataclasses.replace(part, **change(part))
        manifests.manifest_path(run, "dav2", "shard.00001").write_bytes(manifests.to_json(changed))

    return rewrite


def _write_run_json(run: Path, record: manifests.RunRecord) -> None:
    (run / "run.json").write_bytes(manifests.to_json(record))


FOREIGN = {"seed": 7, "part_size": 3, "weights_sha256": "b"}
DAMAGE: list[tuple[Change, str, str, str]] = [
    (_append("run.json"), "run.json", "wrong_checksum", "not those that were written"),
    (_append("catalog/shard.json"), "catalog/shard.json", "wrong_checksum", "not those that were written"),
    (_remove("catalog/shard.json"), "catalog/shard.json", "missing_file", "No such file"),
    (_copy("catalog/photos.v1.json", "catalog/shard.json"), "catalog/shard.json", "wrong_place", "expected 'shard'"),
    (_append("catalog/shard.parquet"), "catalog/shard.parquet", "wrong_sha256", "expected"),
    (_remove("catalog/shard.parquet"), "catalog/shard.parquet", "missing_file", "No such file"),
    (_append(f"{PART}.json"), f"{PART}.json", "wrong_checksum", "not those that were written"),
    (_copy("columns/dav2/shard.00000.json", f"{PART}.json"), f"{PART}.json", "wrong_place", "expected 'shard.00001'"),
    (_copy("columns/images/shard.00001.json", f"{PART}.json"), f"{PART}.json", "wrong_place", "expected 'dav2'"),
    (_rewrite(lambda part: {"fingerprint": FOREIGN}), f"{PART}.json", "wrong_fingerprint", "weights_sha256: found"),
    (_rewrite(lambda part: {"depth_space": "depth_metric"}), f"{PART}.json", "wrong_depth_space", "from run.json"),
    (_rewrite(lambda part: {"images": part.images[:-1]}), f"{PART}.json", "wrong_images", "found 2 images, expected the 3"),
    (
        _rewrite(lambda part: {"images": part.images[::-1]}),
        f"{PART}.json",
        "wrong_images",
        "images[0].key: found 'shard/",
    ),
    (_rewrite(lambda part: {"files": part.files[1:]}), f"{ZARR}/context/c/0", "unlisted_file", "does not list"),
    (_remove(ZARR), ZARR, "missing_zarr", "shard.00001 is committed"),
    (_remove(f"{ZARR}/context/c/0"), f"{ZARR}/context/c/0", "missing_file", "No such file"),
    (_append(f"{ZARR}/context/c/0"), f"{ZARR}/context/c/0", "wrong_size", "bytes, expected"),
    (_change_first_byte(f"{ZARR}/zarr.json"), f"{ZARR}/zarr.json", "wrong_sha256", "expected"),
    (_create(f"{ZARR}/context/c/1"), f"{ZARR}/context/c/1", "unlisted_file", "does not list"),
    (_create("columns/dav2/shard.00009.json"), "columns/dav2/shard.00009", "unknown_part", "no such part"),
    (_create("columns/dav2/other.00000.failure.json"), "columns/dav2/other.00000", "unknown_part", "no such part"),
    (_create("columns/midas/shard.00000.json"), "columns/midas", "unknown_column", "only dav2, images"),
    (_create("columns/dav2/shard.00000.failure.json"), "columns/dav2/shard.00000.failure.json", "not_json", "expected JSON"),
]


@pytest.mark.parametrize(("damage", "where", "kind", "message"), DAMAGE)
def test_each_damage_is_named_and_nothing_else_is(run: Path, damage: Change, where: str, kind: str, message: str) -> None:
    damage(run)
    found = manifests.verify(run)
    assert [(item.where, item.kind) for item in found] == [(where, kind)]
    assert message in found[0].message


def test_records_that_are_sound_but_do_not_fit_together_are_damage(run: Path) -> None:
    path = manifests.catalogue_path(run, "shard")
    catalogue = manifests.load_catalogue(run, "shard")
    manifests.table_path(run, "shard").write_bytes(b"not a table")
    path.write_bytes(
        manifests.to_json(
            dataclasses.replace(catalogue, images=6, table_sha256=manifests.sha256_file(manifests.table_path(run, "shard")))
        )
    )
    fail_part(run, "dav2", "shard.00000")
    failure = dataclasses.replace(manifests.load_failure(run, "dav2", "shard.00000"), images=64)
    manifests.write_replacing(manifests.failure_path(run, "dav2", "shard.00000"), manifests.to_json(failure))
    assert [(item.where, item.kind) for item in manifests.verify(run)] == [
        ("catalog/shard.json", "wrong_sha256"),
        ("catalog/shard.json", "wrong_images"),
        ("catalog/shard.parquet", "unreadable"),
        ("columns/dav2/shard.00000.failure.json", "wrong_images"),
    ]


def test_a_table_with_too_few_rows_is_damage_even_where_all_digests_agree(run: Path) -> None:
    manifests.table_path(run, "shard").write_bytes(manifests.table_path(run, "photos.v1").read_bytes())
    table_sha256 = manifests.sha256_file(manifests.table_path(run, "shard"))
    catalogue = dataclasses.replace(manifests.load_catalogue(run, "shard"), table_sha256=table_sha256)
    manifests.catalogue_path(run, "shard").write_bytes(manifests.to_json(catalogue))
    digest = manifests.sha256_file(manifests.catalogue_path(run, "shard"))
    record = manifests.load_run(run)
    sources = (dataclasses.replace(record.sources[0], catalogue_sha256=digest), *record.sources[1:])
    _write_run_json(run, dataclasses.replace(record, sources=sources))
    assert [(item.where, item.message) for item in manifests.verify(run)] == [
        ("catalog/shard.parquet", "found 2 rows, expected the 7 images of run.json")
    ]


def test_a_fingerprint_changed_in_run_json_is_named_for_each_part_of_the_column(run: Path) -> None:
    record = manifests.load_run(run)
    columns = (record.columns[0], dataclasses.replace(record.columns[1], fingerprint={"seed": 8, "part_size": 3}))
    _write_run_json(run, dataclasses.replace(record, columns=columns))
    found = manifests.verify(run)
    assert {item.kind for item in found} == {"wrong_fingerprint"}
    assert len(found) == 2 * 4
    assert "seed: found 7, expected 8, from run.json" in {item.message for item in found}


def test_damage_in_many_places_is_all_named(run: Path) -> None:
    changes = [
        _append("catalog/photos.v1.parquet"),
        _rewrite(lambda part: {"fingerprint": FOREIGN}),
        _append(f"{ZARR}/context/c/0"),
        _create(f"{ZARR}/context/c/1"),
        _remove(f"{ZARR}/zarr.json"),
        _append("columns/images/shard.00002.json"),
    ]
    for change in changes:
        change(run)
    assert [(item.where, item.kind) for item in manifests.verify(run)] == [
        ("catalog/photos.v1.parquet", "wrong_sha256"),
        ("columns/images/shard.00002.json", "wrong_checksum"),
        (f"{PART}.json", "wrong_fingerprint"),
        (f"{ZARR}/context/c/1", "unlisted_file"),
        (f"{ZARR}/context/c/0", "wrong_size"),
        (f"{ZARR}/zarr.json", "missing_file"),
    ]


def test_a_sound_run_has_no_damage(run: Path) -> None:
    assert manifests.verify(run) == []


def test_what_is_unfinished_is_not_damage(tmp_path: Path) -> None:
    run = write_run(tmp_path, commit=["shard.00001"])
    fail_part(run, "dav2", "shard.00000")
    for name in ("shard.00000.a1.zarr/zarr.json", "shard.00001.loser.zarr/zarr.json", ".shard.00002.json.1.ab"):
        manifests.write_exclusively(manifests.column_dir(run, "dav2") / name, b"half a fi")
    shutil.rmtree(manifests.column_dir(run, "images"))
    assert manifests.verify(run) == []


def test_any_flipped_bit_of_any_file_is_noticed(run: Path) -> None:
    fail_part(run, "dav2", "shard.00002")
    rng = random.Random(7)
    files = sorted(path for path in run.rglob("*") if path.is_file())
    assert len(files) == 1 + 2 * 2 + 2 * 4 * (1 + 3) + 1
    for path in files:
        content = path.read_bytes()
        for _ in range(3):
            flipped = bytearray(content)
            flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            assert str(path.relative_to(run)) in {damage.where for damage in manifests.verify(run)}
        path.write_bytes(content)
    assert manifests.verify(run) == []


def test_any_lost_or_cut_file_is_noticed(run: Path) -> None:
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert str(path.relative_to(run)) in {damage.where for damage in manifests.verify(run)}
        path.write_bytes(content)
        if path.name != "run.json" and path.parent.parent.name != "columns":  # a part without manifest is pending
            path.unlink()
            assert str(path.relative_to(run)) in {damage.where for damage in manifests.verify(run)}
            path.write_bytes(content)


def test_a_folder_in_a_files_place_is_damage_not_a_crash(run: Path) -> None:
    for name in ("catalog/shard.parquet", f"{PART}.json", f"{ZARR}/zarr.json"):
        (run / name).unlink()
        (run / name).mkdir()
    found = {item.where for item in manifests.verify(run)}
    assert found == {"catalog/shard.parquet", f"{PART}.json"}  # whose manifest is lost, that array is nobody's
    manifests.summarize(run)


def test_the_number_of_checks_is_known_beforehand(run: Path) -> None:
    fail_part(run, "dav2", "shard.00000")
    assert count_checks(run) == len(list(examine(run)))
    (run / "run.json").write_bytes(b"")
    assert count_checks(run) == len(list(examine(run))) == 1


def test_verifying_changes_nothing(run: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in run.rglob("*")}
    manifests.verify(run)
    manifests.summarize(run)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in run.rglob("*")}
    assert after == before
