"""The summary's numbers, against numbers worked out from the run's description."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import manifests
from manifests.schema import CHECKSUM_KEY
from tests.manifests.small_run import EXTENT_PX, PARTS, PATCH, fail_part, write_run


def _accounted(column: manifests.ColumnSummary) -> int:
    return column.labelled + sum(column.rejected.values()) + column.failed + column.pending


def test_a_finished_run_is_described_in_full(tmp_path: Path) -> None:
    summary = manifests.summarize(write_run(tmp_path))
    images, dav2 = summary.columns
    pixels = EXTENT_PX**2 + PATCH.height**2  # of each labelled image; 3, 2, 1 and 2 of them in the four parts
    parts = [manifests.load_part(tmp_path, "dav2", part).statistics for part in PARTS]
    size_bytes = sum(path.stat().st_size for path in (tmp_path / "columns/dav2").glob("*.zarr/**/*") if path.is_file())
    assert (summary.parts_total, summary.images_total, summary.sources_total) == (4, 9, 2)
    assert dav2 == manifests.ColumnSummary(
        name="dav2",
        depth_space="disparity_affine_invariant",
        licences=("Apache-2.0",),
        parts_done=4,
        parts_total=4,
        images_total=9,
        labelled=8,
        rejected={"undecodable": 1},
        failed=0,
        failures={},
        pending=0,
        views=2 * 8,
        pixels=pixels * 8,
        bytes=size_bytes,
        bits_per_pixel=8 * size_bytes / (pixels * 8),
        min=-3.0,  # of shard.00002
        max=5.0,  # of the parts of three images
        mean=pytest.approx((3 * 2.0 + 2 * 1.5 + 1 * 0.0 + 2 * 1.5) / 8, abs=1e-6),  # type: ignore[arg-type]
        max_quantisation_error=max(part.max_quantisation_error or 0 for part in parts),
        litter=0,
        damage=(),
        parts_sha256=dav2.parts_sha256,
    )
    assert (images.depth_space, images.min, images.mean, images.max_quantisation_error) == (None, None, None, None)
    assert (images.labelled, images.pixels, images.licences) == (8, 800, ())
    assert summary.complaints() == []


def test_failed_pending_litter_and_catalogue_problems_are_counted(tmp_path: Path) -> None:
    problems = [
        manifests.Problem(kind="truncated", where="offset 512", message="cut inside a member"),
        manifests.Problem(kind="duplicate_key", where="a.jpg", message="is there twice"),
        manifests.Problem(kind="duplicate_key", where="b.jpg", message="is there twice"),
    ]
    run = write_run(tmp_path, problems=problems, commit=["shard.00001"])
    fail_part(run, "dav2", "shard.00000", "out_of_memory")
    fail_part(run, "dav2", "shard.00002", "crashes_worker")
    fail_part(run, "dav2", "shard.00001")  # meaningless beside the manifest
    for attempt in ("a1", "a2"):
        (manifests.column_dir(run, "dav2") / f"shard.00000.{attempt}.zarr").mkdir()
    summary = manifests.summarize(run)
    images, dav2 = summary.columns
    assert (dav2.labelled, dav2.rejected, dav2.failed, dav2.pending) == (2, {"undecodable": 1}, 4, 2)
    assert (dav2.failures, dav2.litter, dav2.parts_done) == ({"out_of_memory": 3, "crashes_worker": 1}, 2, 1)
    assert (images.failed, images.pending, images.litter) == (0, 6, 0)
    assert summary.source_problems == (
        manifests.SourceProblems(
            source="shard", kinds={"truncated": 1, "duplicate_key": 2}, example="offset 512: cut inside a member"
        ),
    )
    assert summary.complaints() == [
        "4 of 9 images failed in dav2",
        "6 of 9 images pending in images",
        "2 of 9 images pending in dav2",
        "3 catalogue problems",
    ]


SOME_PARTS = st.sets(st.sampled_from(sorted(PARTS)))


@given(SOME_PARTS, SOME_PARTS, SOME_PARTS)
@settings(max_examples=15, deadline=None)
def test_the_four_outcomes_always_add_up_to_the_catalogued_images(
    tmp_path_factory: pytest.TempPathFactory, committed: set[str], failed: set[str], damaged: set[str]
) -> None:
    run = write_run(tmp_path_factory.mktemp("run"), commit=sorted(committed))
    for part in failed:
        fail_part(run, "dav2", part)
    for part in damaged & committed:
        path = manifests.manifest_path(run, "dav2", part)
        path.write_bytes(path.read_bytes()[:-40])
    summary = manifests.summarize(run)
    assert [_accounted(column) for column in summary.columns] == [9, 9]
    dav2 = summary.columns[1]
    assert dav2.failed == sum(PARTS[part] for part in failed - committed)
    assert len(dav2.damage) == len(damaged & committed)
    assert dav2.parts_done == len(committed - damaged)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not_json"),
        (b"{}", "format_version: is missing"),
        (b'{"statistics": 1, "images": [', "not_json"),
        (b"[" * 100_000, "not_json"),
    ],
)
def test_a_damaged_record_is_reported_by_name_and_the_rest_still_counted(tmp_path: Path, content: bytes, said: str) -> None:
    run = write_run(tmp_path, commit=["shard.00000", "shard.00001"])
    fail_part(run, "dav2", "shard.00002")
    manifests.manifest_path(run, "dav2", "shard.00000").write_bytes(content)
    manifests.failure_path(run, "dav2", "shard.00002").write_bytes(content)
    manifests.catalogue_path(run, "photos.v1").write_bytes(content)
    summary = manifests.summarize(run)
    dav2 = summary.columns[1]
    assert (dav2.labelled, dav2.parts_done, dav2.pending, dav2.failures) == (2, 1, 3, {"unreadable_record": 1})
    assert [said in message for message in (*dav2.damage, *summary.damage)] == [True] * 3
    assert ["shard.00000.json" in dav2.damage[0], "photos.v1.json" in summary.damage[0]] == [True, True]
    assert dav2.litter == 0  # the damaged manifest may have named that folder
    assert summary.complaints()[-1] == "3 damaged records"


def test_a_number_changed_in_a_manifest_does_not_enter_the_summary(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    path = manifests.manifest_path(run, "dav2", "shard.00002")
    path.write_bytes(path.read_bytes().replace(b'"min": -3.0', b'"min": -7.0'))
    dav2 = manifests.summarize(run).columns[1]
    assert (dav2.min, dav2.pending) == (-2.0, 1)
    assert "wrong_checksum" in dav2.damage[0]


def test_a_manifest_that_does_not_account_for_its_images_or_has_no_place_in_the_run_is_damage(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    path = manifests.manifest_path
    part = manifests.load_part(run, "dav2", "shard.00000")
    path(run, "dav2", "shard.00000").write_bytes(manifests.to_json(dataclasses.replace(part, images=part.images[:2])))
    path(run, "dav2", "shard.00001").write_bytes(path(run, "images", "shard.00001").read_bytes())
    path(run, "dav2", "shard.00007").write_bytes(b"")
    path(run, "images", "shard.00001").write_bytes(path(run, "images", "shard.00002").read_bytes())
    images, dav2 = manifests.summarize(run).columns
    expected = ["found 2 images, expected the 3", "wrong_place", "no such part"]
    assert [said in message for said, message in zip(expected, dav2.damage, strict=True)] == [True] * 3
    assert "wrong_place" in images.damage[0]
    assert (dav2.pending, images.pending) == (6, 3)


def test_a_manifest_without_a_checksum_is_summarized_as_with_it(tmp_path: Path) -> None:
    """Keys and messages here are made to look like structure."""
    run = write_run(tmp_path)
    traps = [
        '"labelled"',
        '"status": "labelled"\n',
        '],\n  "kind": "part",',
        '"images": [',
        '\n        "kind": "x"',
        "labelled",
    ]
    for i, name in enumerate(("shard.00000", "shard.00001")):
        part = manifests.load_part(run, "dav2", name)
        trap, *others = traps[3 * i : 3 * i + 3]
        rejected = manifests.ImageOutcome(key=trap, status="rejected", problem=manifests.Reason(kind=f"k{i}", message=trap))
        images = (rejected, *(manifests.ImageOutcome(key=other, status="labelled") for other in others))
        part = dataclasses.replace(part, images=images, versions=dict(zip(traps, traps, strict=True)), licence=traps[2])
        part = dataclasses.replace(part, files=part.files[: 2 * i])
        manifests.manifest_path(run, "dav2", name).write_bytes(manifests.to_json(part))
    summary = manifests.summarize(run)
    for path in (run / "columns").glob("*/*.json"):
        document = json.loads(path.read_bytes())
        del document[CHECKSUM_KEY]
        path.write_text(json.dumps(document), encoding="utf-8")
    assert summary == manifests.summarize(run)
    assert (summary.columns[1].labelled, summary.columns[1].rejected) == (7, {"k0": 1, "k1": 1})
    assert [column.damage for column in summary.columns] == [(), ()]


def test_the_most_restrictive_licence_of_all_columns_is_said_and_none_stated_is_unknown(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert manifests.summarize(run).most_restrictive_licences == ("Apache-2.0",)
    for licence, licences, strictest in (
        ("CC-BY-NC-4.0", ("Apache-2.0", "CC-BY-NC-4.0"), "CC-BY-NC-4.0"),
        (None, ("Apache-2.0", "unknown"), "unknown"),
    ):
        part = dataclasses.replace(manifests.load_part(run, "dav2", "shard.00001"), licence=licence)
        manifests.manifest_path(run, "dav2", "shard.00001").write_bytes(manifests.to_json(part))
        summary = manifests.summarize(run)
        assert [column.licences for column in summary.columns] == [(), licences]
        assert summary.most_restrictive_licences == (strictest,)


def test_a_column_whose_record_is_lost_is_damage_and_not_left_out_silently(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    manifests.column_record_path(run, "dav2").unlink()
    summary = manifests.summarize(run)
    assert [column.name for column in summary.columns] == ["images"]
    assert "columns/dav2: there is no column.json in it" in summary.damage[0]
    assert summary.complaints()
