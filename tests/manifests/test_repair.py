"""Repair takes out what is damaged and nothing else, in an order that a crash cannot spoil; labelling makes the same again."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

import manifests
from tests.manifests.small_run import commit_part, fail_part, write_run

IMAGES_PART, DAV2_PART = ("images", "shard.00001"), ("dav2", "shard.00001")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def _files(run: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != ".driver.lock"}


def _spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _dropped(report: manifests.RepairReport) -> list[tuple[str, str]]:
    return [(item.column, item.part) for item in report.dropped]


def _made_with(run: Path, pillow: str) -> None:
    path = manifests.manifest_path(run, *IMAGES_PART)
    path.write_bytes(
        manifests.to_json(dataclasses.replace(manifests.load_part(run, *IMAGES_PART), versions={"pillow": pillow}))
    )


DAMAGE: list[Callable[[Path], object]] = [
    lambda run: _spoil(run / "columns/dav2/shard.00001.a1.zarr/context/c/0/0"),
    lambda run: shutil.rmtree(run / "columns/dav2/shard.00001.a1.zarr"),
    lambda run: (run / "columns/dav2/shard.00001.a1.zarr/zarr.json").unlink(),
    lambda run: _spoil(run / "columns/dav2/shard.00001.json"),
    lambda run: shutil.copyfile(run / "columns/dav2/shard.00000.json", run / "columns/dav2/shard.00001.json"),
    lambda run: ((run / "columns/dav2/shard.00001.json").unlink(), (run / "columns/dav2/shard.00001.json").mkdir()),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_dropped_whole_and_all_else_stays_as_it_was(run: Path, damage: Callable[[Path], object]) -> None:
    others = {name: content for name, content in _files(run).items() if not name.startswith("columns/dav2/shard.00001.")}
    fail_part(run, *DAV2_PART)
    damage(run)
    report = manifests.repair(run, dry_run=True)
    assert (_dropped(report), report.removed, report.left) == ([DAV2_PART], (), ())
    assert manifests.verify(run) != []
    assert manifests.repair(run) == report
    assert _files(run) == others
    assert (manifests.verify(run), manifests.clean(run)) == ([], [])
    part = next(part for part in manifests.parts(manifests.load_run(run)) if part.name == "shard.00001")
    commit_part(run, "dav2", part)
    assert manifests.verify(run) == []


def test_a_sound_run_is_left_alone(run: Path) -> None:
    before = _files(run)
    assert manifests.repair(run) == manifests.RepairReport()
    assert _files(run) == before


def test_files_that_should_not_be_there_are_removed_and_the_part_stays(run: Path) -> None:
    before = _files(run)
    stray = "columns/dav2/shard.00001.a1.zarr/context/c/1"
    (run / stray).write_bytes(b"x")
    (run / "columns/dav2/shard.00002.failure.json").write_bytes(b"x")
    report = manifests.repair(run)
    assert (report.dropped, report.left) == ((), ())
    assert sorted(report.removed) == [stray, "columns/dav2/shard.00002.failure.json"]
    assert _files(run) == before


def test_labels_outlive_their_images_only_where_the_same_pixels_will_come_back(run: Path) -> None:
    jpeg = run / "columns/images/shard.00001.a1.zarr/jpeg/c/0"
    for pillow, expected in ((version("pillow"), [IMAGES_PART]), ("1.0", [DAV2_PART, IMAGES_PART])):
        _made_with(run, pillow)
        content = jpeg.read_bytes()
        _spoil(jpeg)
        assert _dropped(manifests.repair(run, dry_run=True)) == expected
        jpeg.write_bytes(content)
    _made_with(run, version("pillow"))
    _spoil(manifests.manifest_path(run, *IMAGES_PART))  # no telling which Pillow it was
    assert _dropped(manifests.repair(run)) == [DAV2_PART, IMAGES_PART]
    assert manifests.verify(run) == []


def test_what_labelling_cannot_make_again_is_left_and_named(run: Path) -> None:
    _spoil(manifests.table_path(run, manifests.load_catalogue(run, "shard")))
    (run / "columns/dav2/shard.00009.json").write_bytes(b"x")
    (run / "columns/midas").mkdir()
    (run / "columns/midas/shard.00000.json").write_bytes(b"x")
    before = _files(run)
    report = manifests.repair(run)
    assert [item.kind for item in report.left] == ["unknown_column", "wrong_sha256", "unknown_part"]
    assert (report.dropped, report.removed, _files(run)) == ((), (), before)
    (run / "run.json").write_bytes(b"{}")
    assert {item.where for item in manifests.repair(run).left} == {"run.json"}


def test_column_records_of_another_run_cost_no_labels(run: Path) -> None:
    for column in manifests.load_run(run).columns:
        changed = dataclasses.replace(column, fingerprint={"seed": 8})
        manifests.column_record_path(run, column.name).write_bytes(manifests.to_json(changed))
    report = manifests.repair(run)
    assert (report.dropped, {item.kind for item in report.left}) == ((), {"wrong_fingerprint"})


def test_one_part_of_another_run_is_dropped(run: Path) -> None:
    part = dataclasses.replace(manifests.load_part(run, *DAV2_PART), fingerprint={"seed": 8})
    manifests.manifest_path(run, *DAV2_PART).write_bytes(manifests.to_json(part))
    assert _dropped(manifests.repair(run)) == [DAV2_PART]


@pytest.mark.parametrize("steps", range(12))
def test_a_repair_that_dies_at_any_step_leaves_every_part_complete_or_absent(
    run: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil(run / "columns/images/shard.00001.json")
    _spoil(run / "columns/dav2/shard.00000.a1.zarr/context/c/0/0")
    unlink, left = os.unlink, [steps]

    def die_after_some(path: object, **options: int | None) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "unlink", die_after_some)
    with pytest.raises(KeyboardInterrupt):
        manifests.repair(run)
    monkeypatch.undo()
    still = {(item.column, item.part) for item in manifests.verify(run)}
    assert still <= {IMAGES_PART, ("dav2", "shard.00000")}
    if DAV2_PART[1] in manifests.committed_parts(run, "dav2"):  # the labels go before the images they were made from
        assert IMAGES_PART in still
    manifests.repair(run)
    manifests.clean(run)
    assert manifests.verify(run) == []
    assert not {"shard.00000", "shard.00001"} & manifests.committed_parts(run, "dav2")
