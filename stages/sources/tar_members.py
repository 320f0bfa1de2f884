"""The members of an uncompressed tar, or where and why reading had to stop.

tarfile and webdataset end without a word at a damaged header, at a cut between members and at a stray block of zeros, and
follow extended headers wherever these lead. This reader takes each header by itself and looks at what stands after the
last one. It reads V7, USTAR, GNU and PAX tars, never a payload, and never more than 1 MiB of an extended header. Where an
extended header gives a name or a size, that is the member's, whatever its plain header says.
Names in GNU's and PAX's extended headers carry no checksum: a flipped bit in one makes another name, and no damage.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from manifests import Problem
from manifests.location import Location
from stages.sources.source import open_binary

_BLOCK = 512
_MAX_EXTENDED_BYTES = 1 << 20
_MAX_HEADERS_BYTES = 4 << 20  # of one member: a long name, a long link and PAX records
_MAX_END_BYTES = 1 << 20  # the largest record that tar writers are known to fill up with zeros
_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.GNUTYPE_SPARSE: "sparse file",
}
_WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_LONG_NAMES = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TarMember:
    """`name` as stored, bytes that are no UTF-8 as surrogates; only the bytes of the kind `file` stand at `offset`.

    All of the member's headers, the extended ones too, are the `header_bytes` before `offset`.
    """

    name: str
    kind: str
    offset: int
    size_bytes: int
    header_bytes: int


class _DamageError(Exception):
    """Nothing more can be read; `kind` as in a catalogue's problems."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_members(location: Location, e_tag: str | None = None) -> tuple[list[TarMember], int, list[Problem]]:
    """All members in order, the tar's size in bytes, and what ended the reading early. Never raises for a bad file."""
    members: list[TarMember] = []
    size_bytes = 0
    try:
        with open_binary(location, e_tag) as file:
            size_bytes = file.seek(0, os.SEEK_END)
            for member in _members(file, size_bytes):
                members.append(member)  # one by one: what was read before the damage stays
    except (_DamageError, OSError) as error:
        kind = error.kind if isinstance(error, _DamageError) else "unreadable"
        message = f"after {len(members)} members: {error}"
        return members, size_bytes, [Problem(kind=kind, where=location.name, message=message)]
    return members, size_bytes, []


def member_before(file: io.BufferedIOBase, offset: int, header_bytes: int) -> TarMember | None:
    """The member whose headers are the `header_bytes` before `offset`, or None; leaves `file` at `offset`.

    For looking, before its bytes are taken, whether it is still the one that was there when the tar was catalogued.
    """
    file.seek(offset - header_bytes)
    headers = io.BytesIO(file.read(header_bytes))
    try:
        member = next(_members(headers, sys.maxsize), None)
    except _DamageError:
        return None
    return member if member and member.offset == header_bytes else None


def _members(file: io.BufferedIOBase, size_bytes: int) -> Iterator[TarMember]:
    said: dict[str, bytes] = {}  # what extended headers say of the next member
    position = start = 0
    while any(block := _header_block(file, position, size_bytes)):
        header = _parsed(block, position)
        data = position + _BLOCK
        if header.type in _LONG_NAMES or header.type in _PAX_TYPES:
            content = _extended(file, data, header.size, size_bytes)
            if header.type in _LONG_NAMES:
                said[_LONG_NAMES[header.type]] = content.partition(b"\0")[0]
            elif header.type == tarfile.XGLTYPE:
                _refuse_one_for_all(_pax_records(content, position), position)
            else:
                said.update(_pax_records(content, position))
        else:
            if header.type == tarfile.GNUTYPE_SPARSE:
                data = _after_sparse_maps(file, block, data, size_bytes)
            if data - start > _MAX_HEADERS_BYTES:
                message = f"at byte {start}: {data - start} bytes of headers before a single member; {_LOST}"
                raise _DamageError("damaged_header", message)
            member = _member(header, said, data, data - start)
            header.size = 0 if header.type in _WITHOUT_DATA else member.size_bytes
            if data + header.size > size_bytes:
                missing = data + header.size - size_bytes
                raise _DamageError("cut_payload", f"the file ends {missing} bytes before {member.name!r} does; {_LOST}")
            yield member
            said = {}
            start = data + _padded(header.size)
        position = data + _padded(header.size)
    _check_end(file, position, size_bytes)


def _padded(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK


_LOST = "members after this point, if there were any, are lost; fetch or pack it again"


def _header_block(file: io.BufferedIOBase, position: int, size_bytes: int) -> bytes:
    file.seek(position)
    block = file.read(_BLOCK)
    if position == 0:
        _refuse_other_files(block)
    if len(block) < _BLOCK:
        if any(block):
            raise _DamageError("damaged_header", f"at byte {position}: the file ends inside a header; {_LOST}")
        message = f"the file ends at byte {size_bytes}, where two blocks of zeros were expected from byte {position}; {_LOST}"
        raise _DamageError("missing_end", message)
    return block


def _refuse_other_files(start: bytes) -> None:
    if not start:
        raise _DamageError("empty_tar", "the file has no bytes")
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise _DamageError("compressed_tar", f"compressed with {name}; decompress it first, images are read in place")


def _parsed(block: bytes, position: int) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        message = f"at byte {position}: no tar header, or a damaged one ({error}); {_LOST}"
        raise _DamageError("damaged_header", message) from error
    if header.size < 0:
        raise _DamageError("damaged_header", f"at byte {position}: a size of {header.size} bytes; {_LOST}")
    return header


def _extended(file: io.BufferedIOBase, offset: int, length: int, size_bytes: int) -> bytes:
    """What an extended header says; `file` stands at `offset`."""
    if length > _MAX_EXTENDED_BYTES or offset + length > size_bytes:
        message = f"at byte {offset}: an extended header of {length} bytes, in a file of {size_bytes}; {_LOST}"
        raise _DamageError("damaged_header", message)
    return file.read(length)


def _pax_records(content: bytes, position: int) -> dict[str, bytes]:
    """Records `LENGTH KEYWORD=VALUE\\n` as POSIX has them, with nothing before, between or after."""
    records = {}
    rest = content.rstrip(b"\0")
    while rest:
        digits = rest.partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        keyword, equals, value = rest[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or rest[length - 1 : length] != b"\n":
            raise _DamageError("damaged_header", f"at byte {position}: an extended header that makes no sense; {_LOST}")
        records[keyword.decode("utf-8", "replace")] = value
        rest = rest[length:]
    return records


def _refuse_one_for_all(records: dict[str, bytes], position: int) -> None:
    """Of a PAX header for all members that follow: a name or a size of each member is its own."""
    if wrong := sorted(keyword for keyword in records if keyword in ("path", "size") or keyword.startswith("GNU.sparse.")):
        message = f"at byte {position}: a header for all members that gives each the same {', '.join(wrong)}; {_LOST}"
        raise _DamageError("damaged_header", message)


def _after_sparse_maps(file: io.BufferedIOBase, block: bytes, data: int, size_bytes: int) -> int:
    """Where the data of GNU's old sparse member begin: after its further blocks of the map."""
    more = block[482]
    while more:
        more = _header_block(file, data, size_bytes)[504]
        data += _BLOCK
    return data


def _member(header: tarfile.TarInfo, said: dict[str, bytes], data: int, header_bytes: int) -> TarMember:
    kind = _KINDS.get(header.type, "special member")
    if any(keyword.startswith("GNU.sparse.") for keyword in said):
        kind = "sparse file"
    name = said.get("GNU.sparse.name", said.get("path"))
    size = said.get("size", b"%d" % header.size)
    if not size.isdigit():
        raise _DamageError("damaged_header", f"at byte {data - header_bytes}: a size of {size!r} bytes; {_LOST}")
    return TarMember(
        name=header.name if name is None else name.decode("utf-8", "surrogateescape"),
        kind=kind,
        offset=data,
        size_bytes=int(size),
        header_bytes=header_bytes,
    )


def _check_end(file: io.BufferedIOBase, end: int, size_bytes: int) -> None:
    """At `end` stands a block of zeros. Two of them end a tar, and nothing but some more zeros may follow."""
    file.seek(end)
    position = end
    while chunk := file.read(1 << 20):
        if rest := chunk.lstrip(b"\0"):
            first = position + len(chunk) - len(rest)
            message = f"zeros mark the end at byte {end}, but at byte {first} there are data: a second tar, or a hole; {_LOST}"
            raise _DamageError("data_after_end", message)
        position += len(chunk)
    if size_bytes - end < 2 * _BLOCK:
        message = f"found {size_bytes - end} bytes of zeros at the end from byte {end}, expected {2 * _BLOCK}; {_LOST}"
        raise _DamageError("missing_end", message)
    if size_bytes - end > _MAX_END_BYTES:
        message = f"{size_bytes - end} bytes of zeros at the end, as in a download that was never finished; {_LOST}"
        raise _DamageError("long_zero_tail", message)
