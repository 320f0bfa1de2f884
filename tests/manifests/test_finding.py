"""`python -m manifests find`: the image that was asked for, where it is, and what is known of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import manifests
from manifests.__main__ import main
from manifests.finding import FoundImage, _candidates, _is_of, find_images
from stages.label_store import LabelReader, open_run
from tests.manifests.small_run import EXTENT_PX, fail_part, image_key, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Nine images of which one is rejected, a part of two failed in `dav2`, and a part of one is pending there."""
    folder = write_run(tmp_path / "run")
    for part in ("shard.00002", "photos.v1.00000"):
        manifests.manifest_path(folder, "dav2", part).unlink()
    fail_part(folder, "dav2", "photos.v1.00000")
    return folder


def _one(run: Path, name: str) -> FoundImage:
    (found,) = find_images(run, [name])
    return found


def test_an_image_is_found_in_its_place_with_the_files_that_hold_it(run: Path) -> None:
    key = image_key("shard", 5)
    found = _one(run, key)
    assert (found.source, found.key, found.part, found.image, found.row) == ("shard", key, "shard.00001", 2, 5)
    assert (found.location, found.member, found.offset, found.size_bytes) == ("/data/shard.tar", key, 5, 10)
    assert found.photograph_px == (2 * EXTENT_PX, 2 * EXTENT_PX)
    manifest = manifests.load_part(run, "images", "shard.00001")
    assert found.content_sha256 == manifest.images[2].content_sha256
    images, labels = found.columns
    assert (images.column, images.status, images.sizes_px, images.patches) == ("images", "labelled", ((EXTENT_PX,) * 2,), ())
    assert (labels.column, labels.status, labels.sizes_px, labels.patches) == ("dav2", "labelled", ((EXTENT_PX,) * 2,), (1,))
    assert labels.licence == "Apache-2.0"
    names = [file.path for column in found.columns for file in column.files]
    assert names == [f"shard.00001.a1.zarr/{name}" for name in ("jpeg/c/0", "context/c/0/0", "patch/c/0/0")]
    for column in found.columns:
        for file in column.files:
            path = manifests.column_dir(run, column.column) / file.path
            assert (file.size_bytes, file.sha256) == (path.stat().st_size, manifests.sha256_file(path))


def test_an_array_in_several_files_is_named_by_those_that_hold_the_image_and_no_other(run: Path) -> None:
    reader = LabelReader(manifests.place_of(run), "columns/dav2/shard.00000.a1.zarr")
    for i in range(3):
        (labels,) = [column for column in _one(run, image_key("shard", i)).columns if column.column == "dav2"]
        assert len(reader.patches(i)) == sum(labels.patches)
        for file in labels.files:
            path = manifests.column_dir(run, "dav2") / file.path
            kept = path.read_bytes()
            path.write_bytes(b"\0" * len(kept))
            with pytest.raises(ValueError, match=r"damaged|checksum|lost"):
                _ = open_run(run)["dav2"][image_key("shard", i)]
            path.write_bytes(kept)


@pytest.mark.parametrize(("index", "status", "kind"), [(4, "rejected", "undecodable"), (6, "pending", None)])
def test_what_has_no_labels_is_found_with_the_reason(run: Path, index: int, status: str, kind: str | None) -> None:
    *_, labels = _one(run, image_key("shard", index)).columns
    assert (labels.status, labels.kind, labels.files, labels.unread) == (status, kind, (), None)


def test_names_are_keys_file_names_and_patterns(run: Path) -> None:
    *_, failed = _one(run, image_key("photos.v1", 1)).columns
    assert (failed.status, failed.kind) == ("failed", "out_of_memory")
    both = list(find_images(run, ["Straße 001"]))  # a file's name, in both sources
    assert [(image.source, image.names) for image in both] == [("photos.v1", ("Straße 001",)), ("shard", ("Straße 001",))]
    found = [image.row for image in find_images(run, ["shard/*00[2-4]", image_key("shard", 3)])]
    assert found == [2, 3, 4]
    assert list(find_images(run, ["Straße"])) == []


def test_lines_say_all_and_a_name_without_an_image_is_exit_status_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["find", str(run), image_key("shard", 0), "no\x1b such"]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"{run}: no image has the key or file name 'no\\x1b such'\n"
    assert f"shard {image_key('shard', 0)}: image 0 of part shard.00000, row 0 of its source" in printed.out
    assert "tar /data/shard.tar: " in printed.out
    assert "20 x 20 px, sha256 " in printed.out
    assert "dav2: labelled, 10 x 10 px, 1 close-up, Apache-2.0" in printed.out
    assert main(["find", str(run), "*000", "--json"]) == 0
    documents = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [document["source"] for document in documents] == ["photos.v1", "shard"]
    assert documents[1]["columns"][1]["patches"] == [1]


def test_what_cannot_be_read_is_said_and_exit_status_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (manifests.column_dir(run, "dav2") / "shard.00000.a1.zarr/patch_start/c/0").unlink()
    manifests.manifest_path(run, "images", "shard.00001").write_text("{")
    assert main(["find", str(run), image_key("shard", 0)]) == 1
    assert "dav2: labelled, Apache-2.0, its arrays cannot be read: " in capsys.readouterr().out
    assert main(["find", str(run), image_key("shard", 3)]) == 1
    assert "images: unreadable, unreadable_record: " in capsys.readouterr().out
    (table,) = (run / "catalog").glob("shard*.parquet")
    table.write_bytes(b"no table")
    assert main(["find", str(run), image_key("shard", 3)]) == 2
    assert "found sha256" in capsys.readouterr().err


def test_nothing_heavy_is_imported(run: Path) -> None:
    program = (
        "import sys; from manifests.__main__ import main; main(sys.argv[1:]); print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    arguments = [sys.executable, "-c", program, "find", str(run), image_key("shard", 0)]
    ended = subprocess.run(arguments, capture_output=True, check=True, text=True)
    assert {"torch", "zarr", "ray"}.isdisjoint(ended.stderr.splitlines())


def test_arrow_finds_what_python_finds() -> None:
    names = ["a/x_1.png", "a/x%1.png", "a/xy1.png", "b/a/x.jpg", "a\\b.png", "[a].png", "b.png", "a", "a\nb.png"]
    batch = pa.RecordBatch.from_pydict({"key": names, "member": names})
    for pattern in ("*", "x_*", "x%*", "a/*", "*.png", "?.png", "[ab].png", "[[]a].png", "a\\b*", "x?1.png", "a*g", "nothing*"):
        found = {i for i, name in enumerate(names) if _is_of(pattern, name, name)}
        assert found <= set(_candidates(batch, [pattern])), pattern
