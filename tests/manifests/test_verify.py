"""Every kind of damage is named, whatever else is damaged; what is merely unfinished is not."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from numcodecs.pcodec import PCodec

import manifests
from manifests.verify import count_checks, examine
from tests.manifests.small_run import commit_again, fail_part, write_run

PART = "columns/dav2/shard.00001"
ZARR = f"{PART}.a1.zarr"


Change = Callable[[Path], object]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def _found(run: Path, path: str) -> Path:
    """A file of the run; of a table, whose name has its digest, the name may be a pattern."""
    return next(run.glob(path)) if "*" in path else run / path


def _without_digest(where: str) -> str:
    return re.sub(r"\.[0-9a-f]{16}\.parquet$", ".*.parquet", where)


def _append(path: str) -> Change:
    return lambda run: _found(run, path).write_bytes(_found(run, path).read_bytes() + b" ")


def _change_first_byte(path: str) -> Change:
    def change(run: Path) -> None:
        first, *rest = (run / path).read_bytes()
        (run / path).write_bytes(bytes([first ^ 1, *rest]))

    return change


def _remove(path: str) -> Change:
    return lambda run: shutil.rmtree(run / path) if (run / path).is_dir() else _found(run, path).unlink()


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


DAMAGE: list[tuple[Change, str, str, str]] = [
    (_append("run.json"), "run.json", "wrong_checksum", "not those that were written"),
    (_append("catalog/shard.json"), "catalog/shard.json", "wrong_checksum", "not those that were written"),
    (_copy("catalog/photos.v1.json", "catalog/shard.json"), "catalog/shard.json", "wrong_place", "expected 'shard'"),
    (_append("catalog/shard.*.parquet"), "catalog/shard.*.parquet", "wrong_sha256", "expected"),
    (_remove("catalog/shard.*.parquet"), "catalog/shard.*.parquet", "missing_file", "No such file"),
    (_append("columns/dav2/column.json"), "columns/dav2/column.json", "wrong_checksum", "not those that were written"),
    (
        _copy("columns/images/column.json", "columns/dav2/column.json"),
        "columns/dav2/column.json",
        "wrong_place",
        "expected 'dav2'",
    ),
    (_remove("columns/dav2/column.json"), "columns/dav2", "unknown_column", "no column.json in it, so nothing tells"),
    (_remove("columns/images/column.json"), "columns/images", "unknown_column", "restore that, or remove the folder"),
    (_append(f"{PART}.json"), f"{PART}.json", "wrong_checksum", "not those that were written"),
    (_copy("columns/dav2/shard.00000.json", f"{PART}.json"), f"{PART}.json", "wrong_place", "expected 'shard.00001'"),
    (_copy("columns/images/shard.00001.json", f"{PART}.json"), f"{PART}.json", "wrong_place", "expected 'dav2'"),
    (
        _rewrite(lambda part: {"fingerprint": {**part.fingerprint, "weights_sha256": "b"}}),
        f"{PART}.json",
        "wrong_fingerprint",
        "weights_sha256: found",
    ),
    (_rewrite(lambda part: {"depth_space": "depth_metric"}), f"{PART}.json", "wrong_depth_space", "from column.json"),
    (_rewrite(lambda part: {"images": part.images[:-1]}), f"{PART}.json", "wrong_images", "found 2 images, expected the 3"),
    (
        _rewrite(lambda part: {"images": part.images[::-1]}),
        f"{PART}.json",
        "wrong_images",
        "images[0].key: found 'shard/",
    ),
    (
        _rewrite(lambda part: {"images": (dataclasses.replace(part.images[0], content_sha256="c" * 64), *part.images[1:])}),
        f"{PART}.json",
        "other_input",
        "made from a file of sha256 cccc",
    ),
    (_rewrite(lambda part: {"files": part.files[1:]}), f"{ZARR}/context/c/0/0", "unlisted_file", "does not list"),
    (_remove(ZARR), ZARR, "missing_zarr", "shard.00001 is committed"),
    (_remove(f"{ZARR}/context/c/0/0"), f"{ZARR}/context/c/0/0", "missing_file", "No such file"),
    (_append(f"{ZARR}/context/c/0/0"), f"{ZARR}/context/c/0/0", "wrong_size", "bytes, expected"),
    (_change_first_byte(f"{ZARR}/zarr.json"), f"{ZARR}/zarr.json", "wrong_sha256", "expected"),
    (_create(f"{ZARR}/context/c/1/0/0"), f"{ZARR}/context/c/1/0/0", "unlisted_file", "does not list"),
    (_create("columns/dav2/shard.00009.json"), "columns/dav2/shard.00009", "unknown_part", "no catalogue has such a part"),
    (
        _create("columns/dav2/other.00000.failure.json"),
        "columns/dav2/other.00000",
        "unknown_part",
        "no catalogue has such a part",
    ),
    (_create("columns/midas/shard.00000.json"), "columns/midas", "unknown_column", "no column.json in it"),
    (_create("columns/dav2/shard.00000.failure.json"), "columns/dav2/shard.00000.failure.json", "not_json", "expected JSON"),
]


@pytest.mark.parametrize(("damage", "where", "kind", "message"), DAMAGE)
def test_each_damage_is_named_and_nothing_else_is(run: Path, damage: Change, where: str, kind: str, message: str) -> None:
    damage(run)
    found = manifests.verify(run)
    assert [(_without_digest(item.where), item.kind) for item in found] == [(where, kind)]
    assert message in found[0].message


def test_a_lost_catalogue_is_named_with_each_of_its_parts_and_its_table_is_kept(run: Path) -> None:
    _remove("catalog/shard.json")(run)
    found = manifests.verify(run)
    assert [(item.where, item.kind) for item in found] == [
        (f"columns/{column}/shard.0000{i}", "unknown_part") for column in ("images", "dav2") for i in range(3)
    ]
    assert "restore catalog/shard.json if it is lost" in found[0].message


def test_records_that_are_sound_but_do_not_fit_together_are_damage(run: Path) -> None:
    path = manifests.catalogue_path(run, "shard")
    catalogue = manifests.load_catalogue(run, "shard")
    changed = dataclasses.replace(catalogue, images=6, table_sha256=hashlib.sha256(b"not a table").hexdigest())
    manifests.table_path(run, changed).write_bytes(b"not a table")
    path.write_bytes(manifests.to_json(changed))
    fail_part(run, "dav2", "shard.00000")
    failure = dataclasses.replace(manifests.load_failure(run, "dav2", "shard.00000"), images=64)
    manifests.write_replacing(manifests.failure_path(run, "dav2", "shard.00000"), manifests.to_json(failure))
    assert [(_without_digest(item.where), item.kind) for item in manifests.verify(run)] == [
        ("catalog/shard.*.parquet", "wrong_table"),
        ("columns/images/shard.00002", "unknown_part"),
        ("columns/dav2/shard.00002", "unknown_part"),
        ("columns/dav2/shard.00000.failure.json", "wrong_images"),
    ]


def test_a_table_with_too_few_rows_is_damage_even_where_all_digests_agree(run: Path) -> None:
    other = manifests.load_catalogue(run, "photos.v1")
    catalogue = dataclasses.replace(manifests.load_catalogue(run, "shard"), table_sha256=other.table_sha256)
    shutil.copyfile(manifests.table_path(run, other), manifests.table_path(run, catalogue))
    manifests.catalogue_path(run, "shard").write_bytes(manifests.to_json(catalogue))
    assert [(_without_digest(item.where), item.message) for item in manifests.verify(run)] == [
        ("catalog/shard.*.parquet", "found 2 rows, expected the 7 images of the catalogue")
    ]


def test_a_fingerprint_changed_in_the_columns_record_is_named_for_each_of_its_parts(run: Path) -> None:
    record = dataclasses.replace(manifests.load_column(run, "dav2"), fingerprint={"seed": 8, "part_size": 3})
    manifests.column_record_path(run, "dav2").write_bytes(manifests.to_json(record))
    found = manifests.verify(run)
    assert {item.kind for item in found} == {"wrong_fingerprint"}
    assert len(found) == 2 * 4
    assert "seed: found 7, expected 8, from column.json and the catalogue" in {item.message for item in found}


def test_a_part_of_another_list_of_images_is_named(run: Path) -> None:
    catalogue = dataclasses.replace(manifests.load_catalogue(run, "shard"), rows_sha256="e" * 64)
    manifests.catalogue_path(run, "shard").write_bytes(manifests.to_json(catalogue))
    found = manifests.verify(run)
    assert {item.kind for item in found} == {"wrong_fingerprint"}
    assert len(found) == 2 * 3
    assert all(item.message.startswith("rows_sha256: found ") for item in found)


def test_damage_in_many_places_is_all_named_and_alike_by_several_processes(run: Path) -> None:
    changes = [
        _append("catalog/photos.v1.*.parquet"),
        _rewrite(lambda part: {"fingerprint": {**part.fingerprint, "weights_sha256": "b"}}),
        _append(f"{ZARR}/context/c/0/0"),
        _create(f"{ZARR}/context/c/1/0/0"),
        _remove(f"{ZARR}/zarr.json"),
        _append("columns/images/shard.00002.json"),
    ]
    for change in changes:
        change(run)
    for deep in (True, False):
        assert manifests.verify(run, deep=deep, workers=2) == manifests.verify(run, deep=deep)
    assert [(_without_digest(item.where), item.kind) for item in manifests.verify(run)] == [
        ("catalog/photos.v1.*.parquet", "wrong_sha256"),
        ("columns/images/shard.00002.json", "wrong_checksum"),
        (f"{PART}.json", "wrong_fingerprint"),
        (f"{ZARR}/context/c/1/0/0", "unlisted_file"),
        (f"{ZARR}/context/c/0/0", "wrong_size"),
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


def test_a_run_that_was_stopped_before_it_had_sources_and_columns_is_sound(tmp_path: Path) -> None:
    record = manifests.RunRecord(seed=7, part_size=3, plan={}, configuration={})
    manifests.write_exclusively(tmp_path / "run.json", manifests.to_json(record))
    assert manifests.verify(tmp_path) == []
    assert manifests.summarize(tmp_path).columns == ()
    assert (manifests.repair(tmp_path), manifests.clean(tmp_path)) == (manifests.RepairReport(), [])


def test_a_column_that_was_stopped_before_its_record_is_no_damage(run: Path) -> None:
    (run / "columns/midas").mkdir()
    (run / "columns/midas/.column.json.1.0123456789abcdef").write_bytes(b"half a re")
    assert manifests.verify(run) == []


@pytest.mark.parametrize("name", ["column", "catalog"])
def test_a_source_whose_name_is_that_of_a_record_hides_nothing(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", images={name: 2}, commit=[])
    manifests.write_exclusively(run / "columns/catalog/x.00000.json", b"labels without a record")
    for folder in (tmp_path, run / "catalog"):
        (folder / f"{name}.json").write_bytes(b"{")
    assert sorted((item.where, item.kind) for item in manifests.verify(run) if item.kind == "unknown_column") == [
        ("columns/catalog", "unknown_column")
    ]
    (run / f"catalog/{name}.json").unlink()
    (run / f"catalog/{name}.json").symlink_to(tmp_path / f"{name}.json")
    assert sorted((item.where, item.kind) for item in manifests.verify(run)) == [
        (f"catalog/{name}.json", "link"),
        ("columns/catalog", "unknown_column"),
    ]


@pytest.fixture
def tiny_run(tmp_path: Path) -> Path:
    """One committed part in each of two columns, and a failed one: every kind of file there is."""
    run = write_run(tmp_path / "run", images={"shard": 6}, commit=["shard.00000"], rejected=1)
    fail_part(run, "dav2", "shard.00001")
    return run


def _flip_one_bit(path: Path, rng: random.Random) -> None:
    flipped = bytearray(path.read_bytes())
    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    path.write_bytes(flipped)


def test_of_a_thousand_flipped_bits_in_files_of_every_kind_all_are_noticed(tiny_run: Path) -> None:
    """Every file is hit equally often, however small it is, and once at a time: together with those that it does not hide. A
    record that is not to be trusted hides the files it vouches for."""
    rng = random.Random(7)
    contents = {path: path.read_bytes() for path in sorted(tiny_run.rglob("*")) if path.is_file()}
    records = {path for path in contents if path.suffix == ".json" and path.parent.name in ("catalog", "images", "dav2")}
    above = {path for path in records if path.name == "column.json" or path.parent.name == "catalog"}
    arrays = contents.keys() - records - {tiny_run / "run.json"}
    groups = [{tiny_run / "run.json"}, above, records - above, arrays]
    assert [len(group) for group in groups] == [1, 1 + 2, 2 + 1, 1 + 19 + 11]
    for _ in range(1000 // len(contents) + 1):
        for group in groups:
            for path in sorted(group):
                _flip_one_bit(path, rng)
            named = {damage.where for damage in manifests.verify(tiny_run)}
            assert {str(path.relative_to(tiny_run)) for path in group} <= named
            for path in group:
                path.write_bytes(contents[path])
    assert manifests.verify(tiny_run) == []


def test_a_folder_in_a_files_place_is_damage_not_a_crash(run: Path) -> None:
    for path in (_found(run, "catalog/shard.*.parquet"), run / f"{PART}.json", run / f"{ZARR}/zarr.json"):
        path.unlink()
        path.mkdir()
    found = {_without_digest(item.where) for item in manifests.verify(run)}
    assert found == {"catalog/shard.*.parquet", f"{PART}.json"}  # whose manifest is lost, that array is nobody's
    manifests.summarize(run)


def test_the_number_of_checks_is_known_beforehand(run: Path) -> None:
    fail_part(run, "dav2", "shard.00000")
    assert count_checks(run) == len(list(examine(run)))
    (run / "run.json").write_bytes(b"")
    assert count_checks(run) == len(list(examine(run))) == 1


def test_quick_finds_what_is_lost_and_misplaced_and_deep_every_changed_byte(run: Path) -> None:
    _change_first_byte(f"{ZARR}/context/c/0/0")(run)
    assert manifests.verify(run, deep=False) == []
    _remove(f"{ZARR}/zarr.json")(run)
    _append("catalog/shard.*.parquet")(run)
    quick = manifests.verify(run, deep=False)
    assert [(item.kind, item.column, item.part) for item in quick] == [
        ("wrong_sha256", None, None),
        ("missing_file", "dav2", "shard.00001"),
    ]
    assert {item.where for item in manifests.verify(run)} - {item.where for item in quick} == {f"{ZARR}/context/c/0/0"}


def _flip_last_byte(path: str) -> Change:
    return lambda run: (run / path).write_bytes((content := (run / path).read_bytes())[:-1] + bytes([content[-1] ^ 1]))


def _replace(path: str, old: bytes, new: bytes) -> Change:
    return lambda run: (run / path).write_bytes((run / path).read_bytes().replace(old, new))


SPOILT: list[tuple[Change, str, str, str]] = [
    (_flip_last_byte(f"{ZARR}/context/c/0/0"), "context", "undecodable", "checksum is wrong"),
    (_change_first_byte(f"{ZARR}/patch_box/c/0/0"), "patch_box", "undecodable", "checksum is wrong"),
    (_change_first_byte(f"{ZARR}/context/zarr.json"), "context", "wrong_array", "expected JSON"),
    (
        _replace(f"{ZARR}/context/zarr.json", b"sharding_indexed", b"nobody_has_this"),
        "context",
        "wrong_array",
        "nobody_has_this",
    ),
    (
        _replace(f"{ZARR}/context/zarr.json", b"numcodecs.pcodec", b"numcodecs.pickle"),
        "context",
        "wrong_array",
        "codecs: found",
    ),
    (
        _replace(f"{ZARR}/patch/zarr.json", b'"fill_value": 0', b'"fill_value": 9'),
        "patch",
        "wrong_array",
        "fill_value: found 9",
    ),
    (_replace(f"{ZARR}/zarr.json", b'"group"', b'"array"'), "zarr.json", "wrong_array", "node_type"),
    (_remove(f"{ZARR}/context_extent"), "context_extent", "wrong_array", "no zarr.json"),
    (_replace(f"{ZARR}/zarr.json", b'image": 1', b'image": 2'), "zarr.json", "wrong_array", "found 2, expected 1"),
    (_replace(f"{ZARR}/zarr.json", b"disparity_aff", b"depth_aff"), "zarr.json", "wrong_array", "depth_space"),
    (_create(f"{ZARR}/context/c/1/0/0"), "context/c/1/0/0", "wrong_array", "no such file in this place"),
    (
        lambda run: (shutil.rmtree(run / ZARR), shutil.copytree(run / "columns/dav2/shard.00002.a1.zarr", run / ZARR)),
        "context",
        "wrong_array",
        "shape: found [1, 144], expected [3, 144]",
    ),
    (
        lambda run: (shutil.rmtree(run / ZARR), shutil.copytree(run / "columns/dav2/shard.00000.a1.zarr", run / ZARR)),
        "context_extent",
        "wrong_array",
        "is rejected",
    ),
]


@pytest.mark.parametrize(("change", "array", "kind", "message"), SPOILT)
def test_arrays_that_were_spoilt_before_they_were_committed_are_found_by_decoding(
    run: Path, change: Change, array: str, kind: str, message: str
) -> None:
    change(run)
    commit_again(run)
    assert manifests.verify(run, deep=False) == []
    found = manifests.verify(run)
    assert {(item.where, item.kind) for item in found} == {(f"{ZARR}/{array}", kind)}
    assert message in found[0].message


@pytest.mark.parametrize(("column", "arrays"), [("dav2", 9), ("images", 5)])
def test_an_array_without_any_chunk_is_damage_though_it_reads_as_zeros(run: Path, column: str, arrays: int) -> None:
    group = run / "columns" / column / "shard.00001.a1.zarr"
    chunks = sorted(group.glob("*/c"))
    assert len(chunks) == arrays
    for folder in chunks:
        folder.rename(run / "aside")
        commit_again(run, column)
        assert {item.kind for item in manifests.verify(run)} == {"wrong_array"}, folder
        (run / "aside").rename(folder)
    commit_again(run, column)
    assert manifests.verify(run) == []


def test_a_chunk_that_only_another_version_could_decode_is_not_called_damaged(run: Path) -> None:
    """PCodec says no to bytes that carry the right checksums: a later version may have written them."""
    shard = run / ZARR / "context/c/0/0"
    index = 16 * 3 + 4
    content = bytearray(shard.read_bytes())
    offset, size = np.frombuffer(content[-index:-4], "<u8")[:2].tolist()
    content[offset : offset + 4] = b"????"
    content[offset + size - 4 : offset + size] = google_crc32c.value(bytes(content[offset : offset + size - 4])).to_bytes(
        4, "little"
    )
    shard.write_bytes(content)
    for version, kind in ((None, "undecodable"), ("0.1", "unreadable")):
        commit_again(run, versions={"numcodecs": version} if version else None)
        (found,) = manifests.verify(run)
        assert (found.where, found.kind) == (f"{ZARR}/context", kind)
        assert "written with numcodecs" in found.message
    assert [item.kind for item in manifests.repair(run).left] == ["unreadable"]
    assert "shard.00001" in manifests.committed_parts(run, "dav2")


def test_a_bomb_of_values_in_a_few_bytes_is_refused_without_unpacking_it(run: Path) -> None:
    """PCodec packs 40 million equal numbers into a few hundred bytes; unpacked whole, they would take 80 MB."""
    shard = run / ZARR / "context/c/0/0"
    bomb = PCodec(level=8).encode(np.full(40_000_000, 7, np.uint16))
    chunk = bytes(bomb) + google_crc32c.value(bytes(bomb)).to_bytes(4, "little")
    index = np.array([0, len(chunk)] * 3, "<u8").tobytes()
    shard.write_bytes(chunk + index + google_crc32c.value(index).to_bytes(4, "little"))
    commit_again(run)
    (found,) = manifests.verify(run)
    assert (found.where, found.kind) == (f"{ZARR}/context", "undecodable")
    assert "144 values or more, expected 144" in found.message


def test_verifying_changes_nothing(run: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in run.rglob("*")}
    manifests.verify(run)
    manifests.summarize(run)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in run.rglob("*")}
    assert after == before
