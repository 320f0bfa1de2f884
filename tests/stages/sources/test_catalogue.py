"""The catalogue: every image once and in order, and whatever of a source could not be taken named."""

from __future__ import annotations

import io
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

import manifests
from manifests.location import on_disk
from stages.sources.catalogue import (
    SourceNotFoundError,
    cross_source_problems,
    expand_sources,
    read_images,
    read_source,
)
from stages.sources.photographs import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from stages.sources.source import ProblemKind, Source, SourceContent
from tests.conftest import write_tar


def _tar(path: Path, name: str = "s") -> Source:
    return Source(name=name, kind="tar", location=path)


def _folder(path: Path, *names: str | bytes) -> Source:
    """A folder in which each file holds its own name."""
    for name in map(os.fsencode, names):
        file = os.path.join(os.fsencode(path), name)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        Path(os.fsdecode(file)).write_bytes(name)
    return Source(name="s", kind="folder", location=path)


def _written(path: Path, names: list[str]) -> Source:
    """A tar in which each member holds its place in the list; names may come more than once."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(bytes([number])))
    return _tar(path)


def _kinds(content: SourceContent) -> list[str]:
    return [problem.kind for problem in content.problems]


# --- tars -----------------------------------------------------------------------------------------------------------


def test_a_sound_tar_gives_its_images_in_order_with_their_bytes(tmp_path: Path):
    contents = [bytes([i]) * (600 + i) for i in range(5)]
    source = _tar(write_tar(tmp_path / "x.tar", {f"{i:03d}.jpg": content for i, content in enumerate(contents)}))
    found = read_source(source)
    assert [row.key for row in found.rows] == ["000", "001", "002", "003", "004"]
    assert (found.problems, found.size_bytes) == ((), (tmp_path / "x.tar").stat().st_size)
    assert list(read_images(source, found.rows)) == contents


def test_a_cut_tar_keeps_the_images_before_the_cut_and_names_it(tmp_path: Path):
    path = write_tar(tmp_path / "x.tar", {f"{i}.jpg": bytes(600) for i in range(5)})
    os.truncate(path, 3 * 1536)
    found = read_source(_tar(path))
    assert ([row.key for row in found.rows], _kinds(found)) == (["0", "1", "2"], ["missing_end"])


def test_a_tar_without_an_image_is_a_problem_beside_its_damage(tmp_path: Path):
    (tmp_path / "x.tar").write_bytes(b"")
    assert _kinds(read_source(_tar(tmp_path / "x.tar"))) == ["empty_tar", "no_images"]
    assert _kinds(read_source(_tar(write_tar(tmp_path / "y.tar", {})))) == ["no_images"]
    assert _kinds(read_source(_tar(tmp_path / "gone.tar"))) == ["unreadable", "no_images"]


def test_extra_members_are_ignored_and_dotted_names_are_images(tmp_path: Path):
    names = ["a.jpg", "a.json", "a.seg.png", "b.v1.jpg", "b.v2.jpg", "dir.x/c.JPEG", "._a.jpg", "./d.webp", "e.TIF"]
    names += ["f.cls", "f.BMP"]
    found = read_source(_tar(write_tar(tmp_path / "x.tar", dict.fromkeys(names, b"x"))))
    assert {row.key: row.member for row in found.rows} == {
        "a": "a.jpg",
        "b.v1": "b.v1.jpg",
        "b.v2": "b.v2.jpg",
        "dir.x/c": "dir.x/c.JPEG",
        "d": "./d.webp",
        "e": "e.TIF",
        "f": "f.BMP",
    }
    assert found.problems == ()


@pytest.mark.parametrize("names", ["a.jpg a.jpg b.jpg", "a.jpg b.jpg c.jpg a.jpg", "a.jpg b.jpg a.png", "a.jpg ./a.jpg"])
def test_of_images_with_one_key_the_first_stays_and_the_later_is_named(tmp_path: Path, names: str):
    source = _written(tmp_path / "x.tar", names.split())
    found = read_source(source)
    assert [row.key for row in found.rows] == sorted({Path(name).stem for name in names.split()})
    assert next(read_images(source, found.rows)) == b"\0"
    assert _kinds(found) == ["duplicate_key"]
    assert "'a' is already taken by 'a.jpg'" in found.problems[0].message


def test_samples_without_an_image_are_named(tmp_path: Path):
    names = ["a.jpg", "b.json", *(f"c.{number}.txt" for number in range(9))]
    found = read_source(_tar(write_tar(tmp_path / "x.tar", dict.fromkeys(names, b"1"))))
    assert [row.member for row in found.rows] == ["a.jpg"]
    assert [(problem.kind, problem.where) for problem in found.problems] == [
        ("no_image_in_sample", "x.tar:b"),
        ("no_image_in_sample", "x.tar:c"),
    ]
    assert found.problems[1].message.endswith("c.0.txt, c.1.txt, c.2.txt, c.3.txt, ...")


def test_images_that_a_tar_only_links_to_are_named_and_folders_are_not(tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        types = {"a.jpg": tarfile.LNKTYPE, "b.jpg": tarfile.SYMTYPE, "c.jpg": tarfile.DIRTYPE, "d": tarfile.SYMTYPE}
        for name, kind in types.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    found = read_source(_tar(tmp_path / "x.tar"))
    assert found.rows == ()
    assert [(problem.kind, problem.where) for problem in found.problems[:-1]] == [
        ("not_a_file", "x.tar:a.jpg"),
        ("not_a_file", "x.tar:b.jpg"),
    ]
    assert "a hard link" in found.problems[0].message


def _problems(content: SourceContent, kind: str) -> dict[str, str]:
    return {problem.where: problem.message for problem in content.problems if problem.kind == kind}


def test_images_of_a_suffix_that_is_not_read_are_one_problem_with_their_count_and_what_to_do(tmp_path: Path):
    names = ["a.jpg", "b.ARW", "c.arw", "c.json", "d.svg", "e.arw", "e.jpg", "f.txt"]
    found = read_source(_tar(write_tar(tmp_path / "x.tar", dict.fromkeys(names, b"1"))))
    assert [row.member for row in found.rows] == ["a.jpg", "e.jpg"]
    assert _kinds(found) == ["no_image_in_sample", "unread_suffix", "unread_suffix"]
    unread = _problems(found, "unread_suffix")
    assert re.match(r"2 images.* suffix \.arw, which is not read; .*develop", unread["x.tar:b.ARW"])
    assert re.match(r"1 image .* suffix \.svg, which is not read; convert", unread["x.tar:d.svg"])


def test_a_photograph_that_is_not_read_is_not_replaced_by_a_field_of_its_sample(tmp_path: Path):
    found = read_source(
        _tar(write_tar(tmp_path / "x.tar", dict.fromkeys(["7.psd", "7.seg.png", "8.v1.psd", "8.v2.png"], b"1")))
    )
    assert [row.key for row in found.rows] == ["8.v2"]
    assert list(_problems(found, "unread_suffix")) == ["x.tar:7.psd"]
    assert found.problems[-1].message.startswith("2 images")


@pytest.mark.parametrize("between", ["seg", "depth", "mask_0", "normal-map", "Übersicht", "left.depth", "vis"])
def test_a_field_beside_a_photograph_is_no_photograph(tmp_path: Path, between: str):
    found = read_source(_written(tmp_path / "x.tar", ["7.jpg", f"7.{between}.png", f"7.{between}.jpg", "7.json"]))
    assert ([row.key for row in found.rows], found.problems) == (["7"], ())


@pytest.mark.parametrize("between", ["05", "05.17", "5 rome", "v2", "V10", "", "1st"])
def test_a_photograph_whose_name_ends_early_at_a_dot_is_left_out_and_named(tmp_path: Path, between: str):
    found = read_source(_written(tmp_path / "x.tar", ["2021.jpg", f"2021.{between}.jpg", f"2021.{between}.arw", "2022.05.jpg"]))
    assert [row.key for row in found.rows] == ["2021", "2022.05"]
    extra = _problems(found, "extra_image_in_sample")
    assert list(extra) == [f"x.tar:2021.{between}.jpg", f"x.tar:2021.{between}.arw"]
    assert "2021.jpg" in extra[f"x.tar:2021.{between}.jpg"]
    assert len(found.problems) == 2


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["", f"{'d' * 90}/{'e' * 60}/"])
def test_a_tar_packed_anew_in_another_order_gives_no_key_another_picture(tmp_path: Path, form: int, folder: str):
    def pack(names: list[str]) -> None:
        with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
            for name in names:
                member = tarfile.TarInfo(f"{folder}{name}.jpg")
                member.size = 600
                tar.addfile(member, io.BytesIO(name.encode() * 150))

    pack(["blue", "cyan", "plum"])
    source = _tar(tmp_path / "x.tar")
    rows = read_source(source).rows
    assert [content[:4] for content in read_images(source, rows)] == [b"blue", b"cyan", b"plum"]
    pack(["plum", "cyan", "blue"])
    assert next(read_images(source, rows[1:])) == b"cyan" * 150
    for row, name in ((rows[0], "blue"), (rows[2], "plum")):
        with pytest.raises(OSError, match=rf"{name}\.jpg no longer has the 600 bytes"):
            list(read_images(source, [row]))


def test_what_another_machine_reads_and_this_one_does_not_is_an_error_of_this_machine(tmp_path: Path):
    source = _written(tmp_path / "x.tar", ["a.jpg"])
    (row,) = read_source(source).rows
    with pytest.raises(OSError, match=r"x\.tar: a\.jxl .* here \.jxl is not read; convert"):
        list(read_images(source, [replace(row, member="a.jxl")]))


_HOSTILE = ["../up.jpg", "/etc/root.jpg", "a/../../b.jpg", "nul\0é.jpg", "line\nbreak\x1b[2J.jpg", "caf\udce9.jpg"]
_HOSTILE.append("xy" * 400 + ".jpg")


def test_hostile_names_in_a_tar_are_only_text(tmp_path: Path):
    source = _written(tmp_path / "x.tar", _HOSTILE)
    found = read_source(source)
    assert found.problems == ()
    assert list(read_images(source, found.rows)) == [bytes([number]) for number in range(len(_HOSTILE))]
    for row in found.rows:
        assert not re.search(r"[\x00-\x1f]", (row.key + row.member).encode().decode())  # UTF-8, without control characters
    assert [row.key for row in found.rows][3:6] == [r"nul\x00é", r"line\nbreak\x1b[2J", r"caf\udce9"]
    assert os.listdir(tmp_path) == ["x.tar"]


def test_a_member_that_is_no_longer_in_its_place_is_refused(tmp_path: Path):
    source = _written(tmp_path / "x.tar", ["a.jpg", "b.jpg"])
    rows = read_source(source).rows
    _written(tmp_path / "x.tar", ["a.jpg"])  # with zeros in the place of b.jpg, and no less of them
    with pytest.raises(OSError, match=r"x\.tar: b\.jpg no longer has the 1 bytes"):
        list(read_images(source, rows[1:]))


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_recursively_in_order(tmp_path: Path):
    source = _folder(tmp_path, "b.JPG", "a/z.png", "a/a.tif", "notes.txt", ".hidden.png", "d.e/f.g.JPEG", "10.webp")
    found = read_source(source)
    assert [row.key for row in found.rows] == ["10.webp", "b.JPG", "a/a.tif", "a/z.png", "d.e/f.g.JPEG"]
    assert (found.problems, found.size_bytes) == ((), sum(len(row.key) for row in found.rows))
    assert list(read_images(source, found.rows)) == [row.key.encode() for row in found.rows]


def test_photographs_in_a_folder_that_are_not_read_are_counted_by_suffix(tmp_path: Path):
    source = _folder(tmp_path, "1.jpg", "2.CR2", "a/1.cr2", "a/3.cr2", "b/x.psd", ".hidden.psd", "notes.doc")
    found = read_source(source)
    assert [row.key for row in found.rows] == ["1.jpg"]
    assert [(problem.kind, problem.where) for problem in found.problems] == [
        ("unread_suffix", "2.CR2"),
        ("unread_suffix", "b/x.psd"),
    ]
    assert re.match(r"3 images, of which this is the first, with the suffix \.cr2,", found.problems[0].message)


def test_a_cameras_raw_file_beside_its_jpeg_is_the_same_photograph(tmp_path: Path):
    found = read_source(_folder(tmp_path, "1.JPG", "1.dng", "a/2.dng", "a/2.jpeg", "b/1.dng"))
    assert [row.key for row in found.rows] == ["1.JPG", "a/2.jpeg"]
    assert [problem.where for problem in found.problems] == ["b/1.dng"]


def test_suffixes_are_read_or_named_and_the_page_lists_them_all():
    assert not IMAGE_SUFFIXES & UNREAD_SUFFIXES.keys()
    page = (Path(__file__).parents[3] / "docs" / "labelling.md").read_text()
    assert set(re.findall(r"`(\.\w+)`", page)) == IMAGE_SUFFIXES | UNREAD_SUFFIXES.keys()


def test_odd_names_in_a_folder_are_read_or_named(tmp_path: Path):
    source = _folder(tmp_path, "line\nbreak.jpg", "é" * 120 + ".png", b"caf\xe9.jpg", "back\\slash.jpg")
    found = read_source(source)
    assert [row.key for row in found.rows] == ["back\\slash.jpg", r"line\nbreak.jpg", "é" * 120 + ".png"]
    assert [(problem.kind, problem.where) for problem in found.problems] == [("not_utf8", r"caf\udce9.jpg")]
    assert len(list(read_images(source, found.rows))) == 3


def test_linked_files_are_taken_and_linked_folders_named_not_followed(tmp_path: Path):
    source = _folder(tmp_path / "in", "a/a.jpg")
    (on_disk(_folder(tmp_path / "out", "b.jpg").location) / "b.jpg").rename(tmp_path / "b.jpg")
    (tmp_path / "in" / "b.jpg").symlink_to(tmp_path / "b.jpg")
    (tmp_path / "in" / "a" / "loop").symlink_to(tmp_path / "in")
    found = read_source(source)
    assert [row.key for row in found.rows] == ["b.jpg", "a/a.jpg"]
    assert [(problem.kind, problem.where) for problem in found.problems] == [("linked_folder", "a/loop")]


def test_what_cannot_be_opened_in_a_folder_is_named(tmp_path: Path):
    source = _folder(tmp_path, "a.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = read_source(source)
    assert [row.key for row in found.rows] == ["a.jpg"]
    assert [(problem.kind, problem.where) for problem in found.problems] == [
        ("unreadable", "broken.jpg"),
        ("unreadable", "itself.jpg"),
        ("not_a_file", "pipe.jpg"),
    ]


@contextmanager
def _as_somebody_else() -> Iterator[None]:
    """Permissions mean nothing to root."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


def test_files_and_folders_without_permission_are_named():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        source = _folder(folder, "a.jpg", "mine.jpg", "listed/c.jpg", "shut/b.jpg")
        (folder / "mine.jpg").chmod(0)
        (folder / "listed").chmod(0o444)
        (folder / "shut").chmod(0)
        with _as_somebody_else():
            found = read_source(source)
        for shut in ("listed", "shut"):
            (folder / shut).chmod(0o755)
    assert [row.key for row in found.rows] == ["a.jpg"]
    assert [problem.where for problem in found.problems] == ["mine.jpg", "listed/c.jpg", "shut"]
    assert _kinds(found) == ["unreadable"] * 3
    assert "Permission denied" in found.problems[0].message


@pytest.mark.parametrize("content", [b"123456", b"1234", b""])
def test_a_file_of_another_size_than_catalogued_is_refused(tmp_path: Path, content: bytes):
    source = _folder(tmp_path, "a.png")
    rows = read_source(source).rows
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(OSError, match=r"a\.png no longer has the 5 bytes"):
        list(read_images(source, rows))


def test_a_file_that_vanished_is_named(tmp_path: Path):
    source = _folder(tmp_path, "a/a.png")
    rows = read_source(source).rows
    (tmp_path / "a" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a/a\.png"):
        list(read_images(source, rows))


def test_an_empty_or_missing_folder_is_a_problem(tmp_path: Path):
    assert _kinds(read_source(_folder(tmp_path))) == ["no_images"]
    assert _kinds(read_source(_folder(tmp_path / "gone"))) == ["unreadable", "no_images"]


# --- several sources ------------------------------------------------------------------------------------------------


def test_a_key_in_several_sources_is_named_once_for_each_later_image_and_all_stay(tmp_path: Path):
    sources = [_tar(write_tar(tmp_path / f"{name}.tar", dict.fromkeys(keys, b"1")), name) for name, keys in _KEYS.items()]
    contents = [(source, read_source(source)) for source in sources]
    problems = cross_source_problems(contents)
    assert [len(content.rows) for _, content in contents] == [2, 2, 2]
    assert {problem.kind for problem in problems} == {"duplicate_key_across_sources"}
    assert [problem.where for problem in problems] == ["y:2", "z:3", "z:2"]
    assert "'x'" in problems[2].message
    assert cross_source_problems(contents[:1]) == ()


_KEYS = {"x": ["1.jpg", "2.jpg"], "y": ["2.png", "3.jpg"], "z": ["3.jpg", "2.jpg"]}


def test_braces_globs_and_folders_are_expanded_once_each_with_distinct_names(tmp_path: Path):
    for name in ("s-0.tar", "s-1.tar", "t/s-1.TAR"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, {})
    patterns = ["s-{0..1}.tar", "*.tar", "t/*.TAR", "t", "t/../t/"]
    found = expand_sources([f"{tmp_path}/{pattern}" for pattern in patterns])
    assert [(source.name, source.kind) for source in found] == [
        ("s-0", "tar"),
        ("s-1", "tar"),
        ("s-1-2", "tar"),
        ("t", "folder"),
    ]


@pytest.mark.parametrize("letter", ["x", "é"])
def test_names_as_long_as_they_may_be_give_sources_whose_files_can_be_named(tmp_path: Path, letter: str):
    """Of letters that are not ASCII nothing is left in a source's name, so an x at each end stands for the others."""
    middle = letter * ((238 if letter == "x" else 239) // len(letter.encode()))
    tars = [tmp_path / f"x{middle}{end}.tar" for end in ("x0", "x1")]
    for path in tars:
        write_tar(path, {})
    (tmp_path / f"{middle}xxx").mkdir()
    names = [source.name for source in expand_sources([*map(str, tars), str(tmp_path / f"{middle}xxx")])]
    assert len(set(names)) == 3
    assert [source.name for source in expand_sources([str(tars[1])])] == names[1:2]  # of itself, whatever stands beside it
    for name in names:
        part = f"{name}.00000"
        manifests.write_replacing(manifests.failure_path(tmp_path, "images", part), b"{}")
        (tmp_path / f"{part}.{'0' * 8}.zarr").mkdir()
        assert len(f".{part}.failure.json.4194304.{'0' * 16}") <= 143


def test_a_tar_is_taken_once_whatever_links_lead_to_it_and_named_as_it_was_given(tmp_path: Path):
    write_tar(tmp_path / "blob", {})
    (tmp_path / "a.tar").symlink_to(tmp_path / "blob")
    os.link(tmp_path / "blob", tmp_path / "b.tar")
    (tmp_path / "here").symlink_to(tmp_path)
    patterns = [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar", f"{tmp_path}/here/*.tar", os.path.relpath(tmp_path / "a.tar")]
    (source,) = expand_sources(patterns)
    assert (source.name, source.location) == ("a", tmp_path / "a.tar")


def test_a_folder_within_another_one_is_refused(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    for inner in ("a/b", "link"):
        with pytest.raises(SourceNotFoundError, match=rf"{inner}: inside .*/a, which is a source too"):
            expand_sources([str(tmp_path / inner), str(tmp_path / "a")])


def test_names_with_braces_and_brackets_are_found_as_they_are(tmp_path: Path):
    names = ["odd{.tar", "x[1].tar"]
    for name in names:
        write_tar(tmp_path / name, {})
    assert [source.location.name for source in expand_sources([str(tmp_path / name) for name in names])] == names


def test_every_pattern_that_names_nothing_is_listed(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(b"")
    (tmp_path / "b.tar.gz").write_bytes(b"")
    found = r"nope-0.*nope-1.*a\.zip: neither a folder nor a list after @ nor a \.parquet file nor a \.tar file; "
    found += r".*b\.tar\.gz.*decompress"
    with pytest.raises(SourceNotFoundError, match=found):
        expand_sources([f"{tmp_path}/nope-{{0..1}}.tar", *(str(tmp_path / name) for name in ("a.zip", "b.tar.gz"))])


def test_the_format_page_names_every_kind_of_problem():
    page = (Path(__file__).parents[3] / "docs" / "format.md").read_text()
    assert set(get_args(ProblemKind)) <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
