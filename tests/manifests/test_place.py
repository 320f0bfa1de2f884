"""The door to a run: only files, never through a link, never out of the run, and never half a list."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.location import is_url
from manifests.place import MAX_DEPTH, LinkError, TooLargeError, WrongKindError, place_of

NAME = "columns/dav2/a.json"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run" / "columns" / "dav2").mkdir(parents=True)
    (tmp_path / "run" / NAME).write_bytes(b"0123456789")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.json").write_bytes(b"secret")
    return tmp_path / "run"


def test_a_file_is_read_whole_or_from_any_position(run: Path) -> None:
    assert place_of(run).read(NAME, limit_bytes=10) == b"0123456789"
    with place_of(run).open(NAME) as stream:
        stream.seek(-3, 2)
        assert stream.read(2) == b"78"


def test_a_larger_file_than_expected_is_not_read(run: Path) -> None:
    os.truncate(run / NAME, 1 << 40)
    with pytest.raises(TooLargeError, match="found 1099511627776 bytes, expected at most 10"):
        place_of(run).read(NAME, limit_bytes=10)


@pytest.mark.parametrize(
    "name", ["../outside/a.json", "/etc/passwd", "columns/../../outside/a.json", "a//b", "./a", "", "a\0b"]
)
def test_a_name_that_is_not_below_the_run_is_a_mistake_of_the_caller(run: Path, name: str) -> None:
    place = place_of(run)
    for call in (place.open, place.remove):
        with pytest.raises(ValueError, match="expected"):
            call(name)


@pytest.mark.parametrize("link", ["columns", "columns/dav2", NAME])
def test_no_link_is_followed_on_any_way(run: Path, link: str) -> None:
    moved = run.parent / "moved"
    (run / link).rename(moved)
    (run / link).symlink_to(moved)
    place = place_of(run)
    with pytest.raises(LinkError, match="found a link"):
        place.open(NAME)
    if link != NAME:
        for call in (place.entries, place.tree, place.remove):
            with pytest.raises(LinkError, match="found a link"):
                call("columns/dav2/x" if call == place.remove else "columns/dav2")
    place.remove(link)
    assert not (run / link).is_symlink()
    assert moved.exists()


@pytest.mark.parametrize("link", ["columns", "columns/dav2"])
def test_nothing_is_written_through_a_link(run: Path, link: str) -> None:
    moved = run.parent / "moved"
    (run / link).rename(moved)
    (run / link).symlink_to(moved)
    before = sorted(moved.rglob("*"))
    place = place_of(run)
    calls: list[Callable[[], object]] = [
        lambda: place.create("columns/dav2/b.json", b"x"),
        lambda: place.replace("columns/dav2/b.json", b"x"),
        lambda: place.new_folder("columns/dav2/b.zarr"),
    ]
    for call in calls:
        with pytest.raises(LinkError, match="found a link, expected a folder"):
            call()
    assert sorted(moved.rglob("*")) == before


def test_a_link_in_a_files_place_is_left_by_create_and_replaced_by_replace(run: Path) -> None:
    secret = run.parent / "outside/a.json"
    (run / "run.json").symlink_to(secret)
    place = place_of(run)
    assert (place.create("run.json", b"x"), place.exists("run.json")) == (False, True)
    place.replace("run.json", b"x")
    assert (secret.read_bytes(), place.read("run.json", limit_bytes=1), (run / "run.json").is_symlink()) == (
        b"secret",
        b"x",
        False,
    )


def test_a_new_folder_is_not_written_into_through_a_link_that_came_meanwhile(run: Path) -> None:
    new = place_of(run).new_folder("columns/dav2/b.zarr")
    (run / "columns/dav2/b.zarr/c").symlink_to(run.parent / "outside")
    with pytest.raises(LinkError, match="found a link"):
        new.write("c/0", b"x")
    (run / "columns/dav2/b.zarr/zarr.json").symlink_to(run.parent / "outside/new")
    with pytest.raises(OSError, match=r"zarr\.json"):
        new.write("zarr.json", b"x")
    assert os.listdir(run.parent / "outside") == ["a.json"]


def test_folders_come_with_what_is_put_into_them_and_their_names_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    place = place_of(tmp_path / "run")
    assert place.create("columns/dav2/a.json", b"x")
    folders = [str(tmp_path / name) for name in ("", "run", "run/columns", "run/columns/dav2")]
    assert [name.rstrip("/") for name in synced if not name.rpartition("/")[2].startswith(".")][-3:] == folders[1:]
    assert str(tmp_path) in synced
    synced.clear()
    (tmp_path / "run/columns/b").mkdir()  # by one that died before it could sync
    place.new_folder("columns/b/b.zarr")
    assert str(tmp_path / "run/columns") in synced
    place.create("columns/c/d/e.json", b"x")
    assert synced.count(str(tmp_path / "run/columns")) == 2


def test_what_interrupted_writers_leave_is_told_by_its_name(run: Path) -> None:
    for name in (".a.json.12.0123456789abcdef", ".a.json.claim", ".other", "a.json.12.0123456789abcdef"):
        (run / "columns" / name).touch()
    assert place_of(run).leftovers("columns") == [".a.json.12.0123456789abcdef", ".a.json.claim"]


def test_existence_is_told_without_following_and_a_folder_that_is_not_there_holds_nothing(run: Path) -> None:
    (run / "dangling").symlink_to("nowhere")
    place = place_of(run)
    found = {name: place.exists(name) for name in (NAME, "columns", "dangling", "columns/b.json", "no/such/thing")}
    assert found == {NAME: True, "columns": True, "dangling": True, "columns/b.json": False, "no/such/thing": False}


def test_what_is_no_file_is_refused_without_waiting_for_it(run: Path) -> None:
    os.mkfifo(run / "pipe")
    with pytest.raises(WrongKindError, match="found a pipe, socket or device, expected a file"):
        place_of(run).open("pipe")
    with pytest.raises(WrongKindError, match="found a folder, expected a file"):
        place_of(run).open("columns")
    with pytest.raises(WrongKindError, match="found a file, expected a folder"):
        place_of(run).entries(NAME)
    with pytest.raises(WrongKindError, match="found a pipe, socket or device, expected a folder"):
        place_of(run).tree("pipe")


def test_lists_name_everything_by_what_it_is_and_an_absent_folder_is_empty(run: Path) -> None:
    os.mkfifo(run / "columns/.pipe")
    (run / "columns/link").symlink_to(run.parent / "outside")
    place = place_of(run)
    assert [(entry.name, entry.kind) for entry in place.entries("columns")] == [
        (".pipe", "other"),
        ("dav2", "folder"),
        ("link", "link"),
    ]
    tree = [(".pipe", "other", None), ("dav2", "folder", None), ("dav2/a.json", "file", 10), ("link", "link", None)]
    assert [tuple(entry) for entry in place.tree("columns")] == tree
    assert (place.entries("nothing"), place.tree("nothing/at/all")) == ([], [])


def test_a_folder_that_cannot_be_listed_raises_and_is_not_half_a_list(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = os.stat(run / "columns/dav2").st_ino
    scandir = os.scandir

    def failing(path: int) -> object:
        if os.fstat(path).st_ino == inner:
            raise OSError(errno.EMFILE, "Too many open files")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(OSError, match="Too many open files"):
        place_of(run).tree("columns")


def test_a_folder_is_removed_with_all_in_it_but_nothing_that_its_links_point_to(run: Path) -> None:
    (run / "columns/dav2/link").symlink_to(run.parent / "outside")
    (run / "columns/dav2/x.zarr/c").mkdir(parents=True)
    place_of(run).remove("columns/dav2")
    assert not (run / "columns/dav2").exists()
    assert (run.parent / "outside/a.json").read_bytes() == b"secret"
    place_of(run).remove("columns/dav2")  # what is gone is no error


def test_folders_without_end_are_an_error_and_no_recursion(run: Path) -> None:
    deep = run.joinpath("columns", *["d"] * (MAX_DEPTH + 5))
    deep.mkdir(parents=True)
    for call in (place_of(run).tree, place_of(run).remove):
        with pytest.raises(TooLargeError, match="folders in each other"):
            call("columns")


def test_a_url_is_told_from_a_path() -> None:
    assert all(is_url(text) for text in ("s3://bucket/run", "gs://b", "az://c/x", "https://host/run", "file:///run"))
    assert not any(is_url(text) for text in ("run", "/data/run", "s3:/odd", "a:b//c", "./s3://x"))
