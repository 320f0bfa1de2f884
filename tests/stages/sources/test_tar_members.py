"""Tars: whatever is done to the bytes of one, its members are all there, or a problem says that they are not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.sources.tar_members import TarMember, member_before, read_members

_FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
_LONG = f"{'d' * 70}/{'n' * 60}.jpg"
"""Too long for a plain header: split in two by USTAR, in an extended header in the others."""


def _write(path: Path, contents: dict[str, bytes], form: int = tarfile.USTAR_FORMAT, **fields: object) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))
    return path


def _contents() -> dict[str, bytes]:
    return {"a.jpg": b"a" * 700, _LONG: b"b" * 512, "empty.jpg": b"", "c.jpg": b"c" * 200}


@pytest.fixture(params=_FORMATS)
def sound(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sound tar of four files, with no more zeros at its end than the two blocks that belong there."""
    path = _write(tmp_path / "sound.tar", _contents(), _FORMATS[request.param])
    members, _, _ = read_members(path)
    os.truncate(path, members[-1].offset + 512 + 1024)
    return path


def _members(path: Path) -> list[TarMember]:
    members, _, problems = read_members(path)
    assert problems == []
    return members


def _kinds(path: Path) -> list[str]:
    return [problem.kind for problem in read_members(path)[2]]


def _header_blocks(path: Path) -> list[int]:
    """Where the plain headers of a tar begin, each of which a checksum guards."""
    with tarfile.open(path) as tar:
        extended = {member.offset for member in tar}  # where a member has an extended header, this is that one's
    return sorted(extended | {member.offset - 512 for member in _members(path)})


def test_every_format_gives_all_members_with_their_places(sound: Path):
    content = sound.read_bytes()
    found = {member.name: content[member.offset : member.offset + member.size_bytes] for member in _members(sound)}
    assert found == _contents()


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_names_of_any_length_and_alphabet_are_read(tmp_path: Path, form: str):
    names = [f"{'x' * length}.jpg" for length in (95, 96, 97, 255, 256, 5000)] + ["日本/é.jpg", "caf\udce9.jpg", "a\nb.jpg"]
    path = _write(tmp_path / "x.tar", dict.fromkeys(names, b"1"), _FORMATS[form])
    assert [member.name for member in _members(path)] == names


def test_a_tar_cut_anywhere_has_a_problem_and_the_members_before_it(sound: Path):
    whole, end = _members(sound), sound.stat().st_size
    boundaries = {block + shift for block in range(0, end + 1, 512) for shift in (-1, 0, 1)}
    for size_bytes in sorted(boundaries & set(range(end)) | set(range(0, end, 7)), reverse=True):
        os.truncate(sound, size_bytes)
        members, found_bytes, problems = read_members(sound)
        assert len(problems) == 1
        assert found_bytes == size_bytes
        assert members == [member for member in whole if member.offset + member.size_bytes <= size_bytes]


@pytest.mark.parametrize(
    ("cut", "kind"),
    [
        (0, "empty_tar"),
        (1, "damaged_header"),
        (511, "damaged_header"),
        (512 + 699, "cut_payload"),
        (512 + 700, "missing_end"),
        (1536 - 1, "missing_end"),
        (1536, "missing_end"),
        (1536 + 1, "damaged_header"),
        (1536 + 512 + 5, "cut_payload"),
        (3072, "missing_end"),
        (3072 + 511, "missing_end"),
        (3072 + 512, "missing_end"),
        (3072 + 1023, "missing_end"),
    ],
)
def test_a_cut_is_named_by_its_place(tmp_path: Path, cut: int, kind: str):
    path = _write(tmp_path / "x.tar", {"a.jpg": b"a" * 700, "b.jpg": b"b" * 700})
    os.truncate(path, cut)
    assert _kinds(path) == [kind]


def test_a_flip_of_any_byte_of_a_header_loses_no_member_without_a_problem(sound: Path):
    whole, content, generator = _members(sound), sound.read_bytes(), random.Random(0)
    headers = _header_blocks(sound)
    places = [*range(512), *(generator.choice(headers) + generator.randrange(512) for _ in range(200))]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        sound.write_bytes(damaged)
        members, _, problems = read_members(sound)
        assert problems or members == whole


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_no_overwritten_stretch_of_a_tar_loses_a_member_without_a_problem(tmp_path: Path, data: st.DataObject):
    path = _write(tmp_path / "x.tar", _contents())
    whole, content = _members(path), path.read_bytes()
    start = data.draw(st.integers(0, whole[-1].offset - 1))
    zeros = st.integers(0, whole[-1].offset - start).map(bytes)  # where they reach the end, nobody could tell
    noise = data.draw(st.one_of(st.binary(max_size=600), zeros))
    path.write_bytes(content[:start] + noise + content[start + len(noise) :])
    members, _, problems = read_members(path)
    assert problems or members == whole


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_flip_in_an_extended_header_may_change_a_name_but_loses_nothing(tmp_path: Path, form: str):
    path = _write(tmp_path / "x.tar", _contents(), _FORMATS[form])
    whole, content = _members(path), path.read_bytes()
    for place in range(2048, 2048 + 512):  # what the extended header of the second member says
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        members, _, problems = read_members(path)
        assert problems or [(member.offset, member.size_bytes) for member in members] == [
            (member.offset, member.size_bytes) for member in whole
        ]


@pytest.mark.parametrize(
    ("tail", "kinds"),
    [
        (bytes(1024), []),
        (bytes(10240), []),
        (bytes(1 << 20), []),
        (bytes((1 << 20) + 1), ["long_zero_tail"]),
        (bytes(512), ["missing_end"]),
        (bytes(1536) + b"garbage", ["data_after_end"]),
        (bytes(512) + b"\1" + bytes(511), ["data_after_end"]),
        (b"garbage", ["damaged_header"]),
    ],
)
def test_what_stands_after_the_last_member_is_looked_at(tmp_path: Path, tail: bytes, kinds: list[str]):
    path = _write(tmp_path / "x.tar", {"a.jpg": b"a" * 512})
    path.write_bytes(path.read_bytes()[:1024] + tail)
    assert _kinds(path) == kinds
    assert len(read_members(path)[0]) == 1


def test_a_second_tar_after_the_first_is_named(tmp_path: Path):
    path = _write(tmp_path / "x.tar", {"a.jpg": b"a"})
    path.write_bytes(path.read_bytes() * 2)
    assert _kinds(path) == ["data_after_end"]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_is_named_with_what_to_do(tmp_path: Path, compress: Callable[[bytes], bytes]):
    path = _write(tmp_path / "x.tar", {"a.jpg": b"a"})
    path.write_bytes(compress(path.read_bytes()))
    (problem,) = read_members(path)[2]
    assert (problem.kind, "decompress it" in problem.message) == ("compressed_tar", True)


def test_an_unreadable_tar_is_a_problem(tmp_path: Path):
    assert _kinds(tmp_path / "gone.tar") == ["unreadable"]


def test_links_folders_and_devices_have_their_kinds_and_no_data(tmp_path: Path):
    types = [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.CONTTYPE]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for number, kind in enumerate(types):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.type, member.linkname = kind, "y" * 150
            tar.addfile(member)
    kinds = [member.kind for member in _members(path)]
    assert kinds == ["hard link", "symbolic link", "folder", "special member", "special member", "file"]


@pytest.mark.skipif(shutil.which("tar") is None, reason="makes sparse members with the system's tar")
@pytest.mark.parametrize("form", ["--format=gnu", *(f"--format=posix --sparse-version={v}" for v in ("0.0", "0.1", "1.0"))])
def test_sparse_members_are_told_from_files_and_stepped_over(tmp_path: Path, form: str):
    with (tmp_path / "holes.jpg").open("wb") as file:
        for number in range(40):  # more stretches than fit into a header
            file.seek(number << 16)
            file.write(b"data")
    (tmp_path / "plain.jpg").write_bytes(b"plain")
    command = ["tar", *form.split(), "--sparse", "-cf", "x.tar", "holes.jpg", "plain.jpg"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert [(member.name, member.kind) for member in _members(tmp_path / "x.tar")] == [
        ("holes.jpg", "sparse file"),
        ("plain.jpg", "file"),
    ]


@pytest.mark.parametrize("size", ["-512", "-1", "1e9", "", "99999999999999999999"])
def test_a_size_that_leads_nowhere_ends_the_reading(tmp_path: Path, size: str):
    path = _write(tmp_path / "x.tar", {"a.jpg": b"a"}, tarfile.PAX_FORMAT, pax_headers={"size": size})
    members, _, problems = read_members(path)
    assert members == []
    assert problems[0].kind in ("damaged_header", "cut_payload")


def test_a_negative_size_in_a_header_ends_the_reading(tmp_path: Path):
    path = tmp_path / "x.tar"
    header = tarfile.TarInfo("a.jpg")
    header.size = -512
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert _kinds(path) == ["damaged_header"]


def test_a_huge_extended_header_is_not_read_and_a_long_row_of_them_not_followed_in_depth(tmp_path: Path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 6 << 20
    path = tmp_path / "x.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"n" * (6 << 20) + bytes(1024))
    tracemalloc.start()
    kinds, peak_bytes = _kinds(path), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (kinds, peak_bytes < 1 << 20) == (["damaged_header"], True)
    header.size = 5
    path.write_bytes((header.tobuf(tarfile.GNU_FORMAT) + b"name".ljust(512, b"\0")) * 3000 + bytes(1024))
    assert read_members(path)[0] == []


def _pax(records: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header by hand, for what tarfile would not write."""
    content = b""
    for keyword, value in records.items():
        rest = f" {keyword}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        content += str(length).encode() + rest
    header = tarfile.TarInfo("pax")
    header.type, header.size = kind, len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def _plain(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = size
    return header.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("plain_size", [0, 3, 700, 5000])
def test_the_size_that_an_extended_header_gives_is_the_members(tmp_path: Path, plain_size: int):
    path = tmp_path / "x.tar"
    first = _pax({"size": "600"}) + _plain("a.jpg", plain_size) + b"a" * 600 + bytes(424)
    path.write_bytes(first + _plain("b.jpg", 7) + b"b" * 7 + bytes(505) + bytes(1024))
    members = _members(path)
    assert [(member.name, member.size_bytes) for member in members] == [("a.jpg", 600), ("b.jpg", 7)]
    with path.open("rb") as file:
        for member, content in zip(members, (b"a" * 600, b"b" * 7), strict=True):
            found = member_before(file, member.offset, member.header_bytes)
            assert found
            assert (found.name, found.size_bytes, file.read(found.size_bytes)) == (member.name, len(content), content)


@pytest.mark.parametrize("keyword", ["size", "path", "GNU.sparse.major"])
def test_a_name_or_size_for_all_members_is_damage_and_a_comment_for_all_is_not(tmp_path: Path, keyword: str):
    path = tmp_path / "x.tar"
    member = _plain("a.jpg", 1) + b"a" + bytes(511)
    path.write_bytes(
        _pax({"comment": "x"}, tarfile.XGLTYPE) + member + _pax({keyword: "1"}, tarfile.XGLTYPE) + member + bytes(1024)
    )
    members, _, (problem,) = read_members(path)
    assert [member.name for member in members] == ["a.jpg"]
    assert (problem.kind, keyword in problem.message) == ("damaged_header", True)


def test_more_headers_than_any_member_needs_are_damage(tmp_path: Path):
    path = tmp_path / "x.tar"
    path.write_bytes(_pax({"comment": "x" * 900_000}) * 5 + _plain("a.jpg", 1) + b"a" + bytes(511) + bytes(1024))
    assert _kinds(path) == ["damaged_header"]


def test_a_member_is_known_again_by_its_headers(sound: Path):
    content = sound.read_bytes()
    with sound.open("rb") as file:
        for member in _members(sound):
            found = member_before(file, member.offset, member.header_bytes)
            assert found
            assert (found.name, found.size_bytes, found.kind) == (member.name, member.size_bytes, "file")
            assert file.read(member.size_bytes) == content[member.offset : member.offset + member.size_bytes]
            assert member_before(file, member.offset, 0) is None
            damaged = bytearray(content)
            damaged[member.offset - 512] ^= 1
            assert member_before(io.BytesIO(damaged), member.offset, member.header_bytes) is None
