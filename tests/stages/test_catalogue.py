"""The catalogue: every image once and in order, and every damage of a tar named rather than silently shortening it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.labelling.catalogue import Source, SourceNotFoundError, expand_sources, read_images, read_source
from tests.conftest import write_tar


def _tar(path: Path) -> Source:
    return Source(name="s", kind="tar", location=path)


@pytest.fixture
def sound_tar(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "sound.tar", {f"{i:03d}.jpg": bytes([i]) * (600 + i) for i in range(5)})


def test_a_sound_tar_gives_its_images_in_order_with_their_bytes(sound_tar: Path):
    content = read_source(_tar(sound_tar))
    assert [row.key for row in content.rows] == ["000", "001", "002", "003", "004"]
    assert content.problems == ()
    assert list(read_images(_tar(sound_tar), content.rows)) == [bytes([i]) * (600 + i) for i in range(5)]


@pytest.mark.parametrize(
    ("size", "kind", "images"),
    [
        (3 * 1536 + 1, "damaged_header", 3),
        (3 * 1536, "missing_end", 3),
        (3 * 1536 + 200, "damaged_header", 3),
        (3 * 1536 + 512 + 100, "cut_payload", 3),
        (5 * 1536, "missing_end", 5),
        (5 * 1536 + 512, "missing_end", 5),
        (0, "empty_tar", 0),
    ],
    ids=["one byte of a header", "between members", "in a header", "in a payload", "no end", "half an end", "no byte"],
)
def test_a_cut_tar_is_named_with_what_could_be_read(sound_tar: Path, size: int, kind: str, images: int):
    sound_tar.write_bytes(sound_tar.read_bytes()[:size])
    content = read_source(_tar(sound_tar))
    assert len(content.rows) == images
    assert kind in {problem.kind for problem in content.problems} or (
        kind == "cut_payload" and "damaged_tar" in {problem.kind for problem in content.problems}
    )


def test_a_flipped_header_byte_is_named(sound_tar: Path):
    content = bytearray(sound_tar.read_bytes())
    content[2 * 1536 + 3] ^= 4
    sound_tar.write_bytes(content)
    found = read_source(_tar(sound_tar))
    assert len(found.rows) == 2
    assert [problem.kind for problem in found.problems] == ["damaged_header"]


def test_a_file_that_is_no_tar_is_named(tmp_path: Path):
    (tmp_path / "x.tar").write_bytes(b"hello" * 400)
    assert {problem.kind for problem in read_source(_tar(tmp_path / "x.tar")).problems} >= {"damaged_tar"}


def test_extra_members_are_ignored_and_dotted_names_are_images(tmp_path: Path):
    names = ["a.jpg", "a.json", "a.seg.png", "b.v1.jpg", "b.v2.jpg", "dir.x/c.JPEG", "._a.jpg", "d.webp"]
    found = read_source(_tar(write_tar(tmp_path / "x.tar", dict.fromkeys(names, b"x"))))
    assert {row.key: row.member for row in found.rows} == {
        "a": "a.jpg",
        "b.v1": "b.v1.jpg",
        "b.v2": "b.v2.jpg",
        "dir.x/c": "dir.x/c.JPEG",
        "d": "d.webp",
    }
    assert found.problems == ()


def test_duplicate_keys_and_samples_without_an_image_are_named(tmp_path: Path):
    found = read_source(_tar(write_tar(tmp_path / "x.tar", {"a.jpg": b"1", "b.json": b"{}", "a.png": b"2"})))
    assert [row.member for row in found.rows] == ["a.jpg"]
    assert {(problem.kind) for problem in found.problems} == {"duplicate_key", "no_image_in_sample"}


def test_a_folder_is_read_recursively_in_order(tmp_path: Path):
    for name in ("b.JPG", "a/z.png", "a/a.tif", "notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    source = Source(name="s", kind="folder", location=tmp_path)
    rows = read_source(source).rows
    assert [row.key for row in rows] == ["b.JPG", "a/a.tif", "a/z.png"]
    assert next(iter(read_images(source, rows[1:]))) == b"a/a.tif"


def test_a_file_that_changed_after_it_was_catalogued_is_refused(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"123")
    source = Source(name="s", kind="folder", location=tmp_path)
    rows = read_source(source).rows
    (tmp_path / "a.png").write_bytes(b"12345")
    with pytest.raises(OSError, match="no longer has the 3 bytes"):
        list(read_images(source, rows))


def test_an_empty_folder_is_a_problem(tmp_path: Path):
    assert [p.kind for p in read_source(Source(name="s", kind="folder", location=tmp_path)).problems] == ["no_images"]


def test_braces_globs_and_folders_are_expanded_once_each_with_distinct_names(tmp_path: Path):
    for name in ("s-0.tar", "s-1.tar", "t/s-1.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, {})
    found = expand_sources([f"{tmp_path}/s-{{0..1}}.tar", f"{tmp_path}/*.tar", f"{tmp_path}/t/*.tar", str(tmp_path / "t")])
    assert [(source.name, source.kind) for source in found] == [
        ("s-0", "tar"),
        ("s-1", "tar"),
        ("s-1-2", "tar"),
        ("t", "folder"),
    ]


def test_every_pattern_that_names_nothing_is_listed(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(SourceNotFoundError, match=r"nope-0.*nope-1.*neither a folder nor a \.tar"):
        expand_sources([f"{tmp_path}/nope-{{0..1}}.tar", str(tmp_path / "a.zip")])
