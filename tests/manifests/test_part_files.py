"""The files of a part held against its manifest: what is lost, cut, changed or a link is named, and a sound part is not."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import manifests
from manifests.part_files import FileProblem, differing_digests, differing_sizes, is_small, refuse_problems
from tests.manifests.small_run import write_run


@pytest.fixture
def part(tmp_path: Path) -> tuple[Path, manifests.PartManifest]:
    """A column's folder, and the manifest of one of its parts."""
    run = write_run(tmp_path / "run", commit=["shard.00000"])
    return manifests.column_dir(run, "dav2"), manifests.load_part(run, "dav2", "shard.00000")


def _at(part: tuple[Path, manifests.PartManifest]) -> tuple[manifests.Place, manifests.PartManifest]:
    return manifests.place_of(part[0].parents[1]), part[1]


def _kinds(problems: list[FileProblem]) -> dict[str, str]:
    return {problem.path: problem.kind for problem in problems}


def test_a_part_as_it_was_written_has_no_problem(part: tuple[Path, manifests.PartManifest]) -> None:
    assert not list(differing_sizes(*_at(part)))
    assert not list(differing_digests(*_at(part)))
    refuse_problems(_at(part)[0], "dav2", [])


def test_each_lost_and_each_cut_file_is_named_without_reading_one(part: tuple[Path, manifests.PartManifest]) -> None:
    column_dir, manifest = part
    for file in manifest.files:
        path = column_dir / file.path
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        assert _kinds(list(differing_sizes(*_at(part)))) == {file.path: "wrong_size"}
        path.unlink()
        assert _kinds(list(differing_sizes(*_at(part)))) == {file.path: "missing_file"}
        path.write_bytes(content)
    shutil.rmtree(column_dir / manifest.zarr)
    assert _kinds(list(differing_sizes(*_at(part)))) == {file.path: "missing_file" for file in manifest.files}


def test_a_changed_bit_is_named_in_every_small_file_and_left_to_its_checksum_in_a_large_one(
    part: tuple[Path, manifests.PartManifest],
) -> None:
    column_dir, manifest = part
    small = [file.path for file in manifest.files if is_small(manifest, file.path)]
    large = {file.path for file in manifest.files} - set(small)
    assert large == {f"{manifest.zarr}/{name}/c/0/0" for name in ("context", "patch")}
    for file in manifest.files:
        path = column_dir / file.path
        content = path.read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert _kinds(list(differing_digests(*_at(part)))) == ({file.path: "wrong_sha256"} if file.path in small else {})
        path.write_bytes(content)


_CHUNK = "/context/c/0/0"


def _linked_file(column_dir: Path, manifest: manifests.PartManifest) -> None:
    path = column_dir / (manifest.zarr + _CHUNK)
    path.rename(column_dir.parent / "elsewhere")
    path.symlink_to(column_dir.parent / "elsewhere")


def _linked_array(column_dir: Path, manifest: manifests.PartManifest) -> None:
    path = column_dir / manifest.zarr / "context"
    path.rename(column_dir.parent / "elsewhere")
    path.symlink_to(column_dir.parent / "elsewhere")


def _linked_column(column_dir: Path, manifest: manifests.PartManifest) -> None:
    column_dir.rename(column_dir.parent / "elsewhere")
    column_dir.symlink_to("elsewhere")


def _pipe(column_dir: Path, manifest: manifests.PartManifest) -> None:
    path = column_dir / (manifest.zarr + _CHUNK)
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("harm", "named"), [(_linked_file, _CHUNK), (_linked_array, "/context/"), (_linked_column, "/"), (_pipe, _CHUNK)]
)
def test_nothing_is_taken_for_a_file_through_a_link_and_a_pipe_is_none(
    part: tuple[Path, manifests.PartManifest], harm: Callable[[Path, manifests.PartManifest], None], named: str
) -> None:
    harm(*part)
    places = [file.path for file in part[1].files if file.path.startswith(part[1].zarr + named)]
    assert _kinds(list(differing_sizes(*_at(part)))) == dict.fromkeys(places, "not_a_file")


def test_a_pipe_or_a_link_in_place_of_a_table_is_neither_waited_for_nor_followed(
    part: tuple[Path, manifests.PartManifest],
) -> None:
    column_dir, manifest = part
    path = column_dir / manifest.zarr / "zarr.json"
    path.rename(column_dir / "aside")
    path.symlink_to(column_dir / "aside")
    assert _kinds(list(differing_digests(*_at(part)))) == {f"{manifest.zarr}/zarr.json": "not_a_file"}
    path.unlink()
    os.mkfifo(path)
    assert _kinds(list(differing_digests(*_at(part)))) == {f"{manifest.zarr}/zarr.json": "not_a_file"}


def test_what_cannot_be_read_here_is_not_called_damage(
    part: tuple[Path, manifests.PartManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    number, scandir = os.stat(part[0] / part[1].zarr / "context").st_ino, os.scandir

    def stale(folder: int) -> object:
        if os.fstat(folder).st_ino == number:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", stale)
    problems = list(differing_sizes(*_at(part)))
    assert _kinds(problems) == {file.path: "unreadable" for file in part[1].files}
    problem = problems[0]
    with pytest.raises(OSError, match=r"cannot be read here and now, which proves no damage:\n.*context/c/0/0: Stale"):
        refuse_problems(_at(part)[0], "dav2", [problem])
    lost = FileProblem("a.zarr/zarr.json", "missing_file", "No such file or directory")
    with pytest.raises(ValueError, match=r"(?s)not as their manifests list them.*and 2 more.*manifests repair"):
        refuse_problems(_at(part)[0], "dav2", [problem, *[lost] * 4])
