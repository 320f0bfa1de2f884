"""`python -m manifests list`: every image of every column once, and exactly those that were asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import manifests
from manifests.__main__ import main
from manifests.errors import RefusedError
from manifests.listing import list_images
from tests.manifests.small_run import PARTS, fail_part, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Nine images of which one is rejected, a part of two failed in `dav2`, and a part of one is pending there."""
    folder = write_run(tmp_path / "run")
    for part in ("shard.00002", "photos.v1.00000"):
        manifests.manifest_path(folder, "dav2", part).unlink()
    fail_part(folder, "dav2", "photos.v1.00000")
    return folder


def test_every_image_of_every_column_is_listed_once_as_it_stands(run: Path) -> None:
    found = list(list_images(run))
    assert len(found) == 2 * sum(PARTS.values())
    assert len({(image.column, image.part, image.image) for image in found}) == len(found)
    images = [image for image in found if image.column == "images"]
    keys = {(image.part, image.image): image.key for image in images}
    teacher = {(image.part, image.image): image for image in found if image.column == "dav2"}
    assert {place: image.key for place, image in teacher.items()} == keys
    by_status = {status: [image for image in teacher.values() if image.status == status] for status in ("failed", "pending")}
    assert [image.part for image in by_status["failed"]] == ["photos.v1.00000"] * 2
    assert all(image.kind and image.message for image in by_status["failed"])
    assert [(image.part, image.kind) for image in by_status["pending"]] == [("shard.00002", None)]
    assert [image.status for image in images].count("rejected") == 1


def test_only_what_was_asked_for_is_listed(run: Path) -> None:
    every = list(list_images(run))
    rejected = list(list_images(run, statuses=["rejected"]))
    assert rejected == [image for image in every if image.status == "rejected"]
    assert list(list_images(run, kinds=[rejected[0].kind or ""])) == rejected
    assert list(list_images(run, columns=["dav2"], sources=["photos.v1"])) == [
        image for image in every if (image.column, image.source) == ("dav2", "photos.v1")
    ]
    key = every[0].key
    assert list(list_images(run, keys=[key])) == [image for image in every if image.key == key]
    assert list(list_images(run, keys=["*"], statuses=["failed", "pending"])) == [
        image for image in every if image.status in ("failed", "pending")
    ]
    assert list(list_images(run, keys=["no such*"])) == []


@pytest.mark.parametrize(("what", "name"), [("columns", "dav3"), ("sources", "shards")])
def test_an_unknown_column_or_source_is_refused_with_those_there_are(run: Path, what: str, name: str) -> None:
    with pytest.raises(RefusedError, match=f"has no {what[:-1]} '{name}'; it has .*(dav2|shard)"):
        list(list_images(run, **{what: [name]}))  # type: ignore[arg-type]


def test_a_record_that_cannot_be_read_is_a_line_and_exit_status_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifests.manifest_path(run, "dav2", "shard.00000").write_text("{")
    assert main(["list", str(run), "--status", "rejected"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("unreadable")]
    assert line.split("\t")[1:5] == ["dav2", "shard", "", "shard.00000"]
    assert "unreadable_record: " in line


def test_lines_are_fields_between_tabs_or_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(run), "--column", "images", "--status", "rejected"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert main(["list", str(run), "--column", "images", "--status", "rejected", "--json"]) == 0
    (document,) = map(json.loads, capsys.readouterr().out.splitlines())
    fields = [document[name] for name in ("status", "column", "source", "key", "part")]
    assert line.split("\t") == [*fields, str(document["image"]), f"{document['kind']}: {document['message']}"]


def test_a_key_cannot_write_a_line_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    path = manifests.manifest_path(run, "images", "shard.00002")
    record = json.loads(path.read_text())
    record["images"][0]["key"] = "a\tb\nlabelled\x1b[2J"
    path.write_text(json.dumps(record))
    assert main(["list", str(run), "--column", "images", "--source", "shard"]) in (0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line.split("\t")) == 7 for line in lines)
    assert not any("\x1b" in line for line in lines)
