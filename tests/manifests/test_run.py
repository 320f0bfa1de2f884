"""Reading a run: which parts it has, which are committed, and what differs between two fingerprints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import manifests
from tests.manifests.small_run import PARTS, fail_part, write_run


@given(st.lists(st.integers(0, 200), max_size=4), st.integers(1, 70))
def test_the_parts_hold_every_image_of_every_source_once_and_in_order(images: list[int], part_size: int) -> None:
    sources = tuple(
        manifests.Catalogue(
            source=f"s{i}",
            location="",
            source_kind="tar",
            size_bytes=0,
            images=count,
            rows_sha256=f"{i:064d}",
            table_sha256="0" * 64,
            problems=(),
        )
        for i, count in enumerate(images)
    )
    run = manifests.Run(seed=0, part_size=part_size, plan={}, sources=sources, columns=(), configuration={})
    found = manifests.parts(run)
    rows = [(part.source, part.number * part_size + i) for part in found for i in range(part.images)]
    assert rows == [(source.source, i) for source in sources for i in range(source.images)]
    assert all(1 <= part.images <= part_size for part in found)
    assert len({part.name for part in found}) == len(found)
    for source in sources:
        expected = [part for part in found if part.source == source.source]
        assert manifests.part_names(source.source, source.images, part_size) == [part.name for part in expected]
        assert {part.rows_sha256 for part in expected} <= {source.rows_sha256}


def test_part_names_have_five_digits_and_more_where_they_must() -> None:
    assert manifests.part_names("a.b", 5, 2) == ["a.b.00000", "a.b.00001", "a.b.00002"]
    assert manifests.part_names("a", 100_001, 1)[-1] == "a.100000"


def test_a_folder_without_run_json_is_not_a_run(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing", Path(__file__)):
        with pytest.raises(manifests.NotARunError, match=r"no run\.json in it, expected a folder made by"):
            manifests.load_run(place)


def test_an_invalid_run_json_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(manifests.InvalidRecordError, match=r"run\.json: not a valid record"):
        manifests.load_run(tmp_path)


def test_a_part_counts_as_committed_when_its_manifest_exists_and_not_before(tmp_path: Path) -> None:
    run = write_run(tmp_path, commit=["shard.00001", "photos.v1.00000"])
    fail_part(run, "dav2", "shard.00000")
    folder = manifests.column_dir(run, "dav2")
    (folder / "shard.00002.a7.zarr").mkdir()
    for name in (".shard.00002.json.123.abc", "._shard.00002.json"):  # one being written, one a file manager's
        (folder / name).write_text("{")
    assert manifests.committed_parts(run, "dav2") == {"shard.00001", "photos.v1.00000"}
    assert manifests.committed_parts(run, "not_begun") == set()


def test_records_are_loaded_from_their_places(tmp_path: Path) -> None:
    run = write_run(tmp_path, commit=["shard.00001"])
    fail_part(run, "dav2", "shard.00000", "out_of_memory")
    assert {part.name: part.images for part in manifests.parts(manifests.load_run(run))} == PARTS
    assert manifests.load_part(run, "dav2", "shard.00001").images[1].status == "rejected"
    assert manifests.load_catalogue(run, "photos.v1").images == 2
    assert manifests.load_column(run, "dav2").depth_space == "disparity_affine_invariant"
    assert manifests.load_failure(run, "dav2", "shard.00000").problem.kind == "out_of_memory"
    with pytest.raises(FileNotFoundError):
        manifests.load_part(run, "dav2", "shard.00000")


def test_a_sound_record_in_another_ones_place_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    fail_part(run, "dav2", "shard.00000")
    path = manifests.manifest_path
    path(run, "dav2", "shard.00000").write_bytes(path(run, "dav2", "shard.00001").read_bytes())
    path(run, "dav2", "shard.00001").write_bytes(path(run, "images", "shard.00001").read_bytes())
    manifests.failure_path(run, "dav2", "shard.00001").write_bytes(
        manifests.failure_path(run, "dav2", "shard.00000").read_bytes()
    )
    manifests.catalogue_path(run, "shard").write_bytes(manifests.catalogue_path(run, "photos.v1").read_bytes())
    manifests.column_record_path(run, "dav2").write_bytes(manifests.column_record_path(run, "images").read_bytes())
    for load, place, field in (
        (manifests.load_part, ("dav2", "shard.00000"), "part"),
        (manifests.load_part, ("dav2", "shard.00001"), "column"),
        (manifests.load_failure, ("dav2", "shard.00001"), "part"),
        (manifests.load_catalogue, ("shard",), "source"),
        (manifests.load_column, ("dav2",), "name"),
    ):
        with pytest.raises(manifests.InvalidRecordError) as caught:
            load(run, *place)
        assert [(problem.path, problem.kind) for problem in caught.value.problems] == [(field, "wrong_place")]


def test_a_run_is_all_its_records_or_as_much_as_can_be_read(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    whole = manifests.load_run(run)
    assert [source.source for source in whole.sources] == ["photos.v1", "shard"]
    assert [column.name for column in whole.columns] == ["images", "dav2"]
    (run / "catalog/shard.json").write_text("{")
    (run / "columns/dav2/column.json").unlink()
    (run / "columns/dav2/column.json").mkdir()
    found, unread = manifests.read_run(run)
    assert set(unread) == {Path("catalog/shard.json"), Path("columns/dav2/column.json")}
    assert [source.source for source in found.sources] == ["photos.v1"]
    assert [column.name for column in found.columns] == ["images"]
    with pytest.raises((manifests.InvalidRecordError, OSError)):
        manifests.load_run(run)


RECORDS = {
    "catalog/shard.json": ("catalog/photos.v1.json", [["photos.v1"], ["images", "dav2"]]),
    "columns/dav2/column.json": ("columns/images/column.json", [["photos.v1", "shard"], ["images"]]),
    "columns/images/column.json": ("columns/dav2/column.json", [["photos.v1", "shard"], ["dav2"]]),
}


def _change_a_byte(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'": ', b'":\t', 1))


def _cut(path: Path, other: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _empty(path: Path, other: Path) -> None:
    os.truncate(path, 0)


def _make_huge(path: Path, other: Path) -> None:
    os.truncate(path, 3 << 30)


def _put_another_there(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def _put_a_folder_there(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def _put_a_pipe_there(path: Path, other: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _put_a_link_there(path: Path, other: Path) -> None:
    path.rename(path.with_name(".aside"))
    path.symlink_to(".aside")


HARMS = [
    _change_a_byte,
    _cut,
    _empty,
    _make_huge,
    _put_another_there,
    _put_a_folder_there,
    _put_a_pipe_there,
    _put_a_link_there,
]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("place", RECORDS)
def test_each_record_that_cannot_be_read_is_named_and_the_others_are_read(
    tmp_path: Path, place: str, harm: Callable[[Path, Path], None]
) -> None:
    run = write_run(tmp_path)
    other, names = RECORDS[place]
    harm(run / place, run / other)
    found, unread = manifests.read_run(run)
    assert list(unread) == [Path(place)]
    assert place in str(unread[Path(place)])
    assert [[source.source for source in found.sources], [column.name for column in found.columns]] == names
    with pytest.raises(type(unread[Path(place)])):
        manifests.load_run(run)
    assert [item.where for item in manifests.verify(run)].count(place) == 1
    assert any(place in message for message in manifests.summarize(run).damage)


def test_fingerprints_that_differ_are_told_apart_field_by_field() -> None:
    found = {"seed": 1, "dtype": "float32", "gone": None, "same": 0.5, "flag": True}
    expected = {"seed": 2, "dtype": "bfloat16", "new": "x", "same": 0.5, "flag": 1}
    assert manifests.fingerprint_differences(found, found) == []
    assert manifests.fingerprint_differences(found, expected) == [
        'dtype: found "float32", expected "bfloat16"',
        "flag: found true, expected 1",
        "gone: found null, expected nothing",
        'new: found nothing, expected "x"',
        "seed: found 1, expected 2",
    ]


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, manifests.__main__; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert "manifests" in loaded
    assert not {"torch", "ray", "zarr", "pyarrow", "numpy", "PIL", "tqdm", "tyro", "stages", "pipeline"} & set(loaded)
