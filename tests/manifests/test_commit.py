"""Files come into being whole, once, and durably."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import multiprocessing
import multiprocessing.synchronize
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from manifests import FileRecord, UnexpectedFilesError, make_folder, place_of, sha256_file, write_exclusively, write_replacing
from manifests.durable import ASIDE_NAME
from manifests.place import NewFolder

CONTENT_BYTES = 300_000


def _race(path: Path, letter: str, start: multiprocessing.synchronize.Barrier, results: multiprocessing.Queue) -> None:
    start.wait()
    results.put((letter, write_exclusively(path, letter.encode() * CONTENT_BYTES)))


def test_of_many_processes_exactly_one_creates_the_file_and_its_content_is_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        path = tmp_path / f"{attempt}.json"
        start, results = context.Barrier(6), context.Queue()
        racers = [context.Process(target=_race, args=(path, letter, start, results)) for letter in "abcdef"]
        for racer in racers:
            racer.start()
        outcomes = dict(results.get(timeout=240) for _ in racers)
        for racer in racers:
            racer.join()
        winners = [letter for letter, created in outcomes.items() if created]
        assert len(winners) == 1
        assert path.read_bytes() == winners[0].encode() * CONTENT_BYTES
    assert sorted(os.listdir(tmp_path)) == [f"{attempt}.json" for attempt in range(5)]


@pytest.fixture
def no_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str, **_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # what Linux says for vfat and some FUSE mounts

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("no_hard_links")
def test_without_hard_links_of_many_writers_of_one_file_exactly_one_wins_however_often(tmp_path: Path) -> None:
    """All start at once and each file is there when some of them look: 8 writers, 200 files."""
    context, files = multiprocessing.get_context("fork"), 200
    start, results = context.Barrier(8), context.Queue()
    racers = [context.Process(target=_race_for, args=(tmp_path, files, number, start, results)) for number in range(8)]
    for racer in racers:
        racer.start()
    won = dict(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join()
    assert sorted(file for files_won in won.values() for file in files_won) == list(range(files))
    for number, files_won in won.items():
        assert {(tmp_path / f"{file}.json").read_bytes() for file in files_won} <= {bytes([number]) * 5000}
    assert len(os.listdir(tmp_path)) == files


def _race_for(
    folder: Path, files: int, number: int, start: multiprocessing.synchronize.Barrier, results: multiprocessing.Queue
) -> None:
    start.wait()
    results.put((number, [file for file in range(files) if write_exclusively(folder / f"{file}.json", bytes([number]) * 5000)]))


@pytest.mark.usefixtures("no_hard_links")
def test_without_hard_links_a_writer_that_is_held_up_before_it_names_its_file_does_not_win_over_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it may take: no time after which a claim would lapse, of which two could be held."""
    path, library, second = tmp_path / "a.json", ctypes.CDLL, []

    def overtaken(*arguments: object, **options: object) -> ctypes.CDLL:
        monkeypatch.setattr(ctypes, "CDLL", library)
        second.append(write_exclusively(path, b"second"))
        return library(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ctypes, "CDLL", overtaken)
    assert (write_exclusively(path, b"first"), second) == (False, [True])
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.usefixtures("no_hard_links")
def test_without_hard_links_a_file_that_is_there_is_left_untouched(tmp_path: Path) -> None:
    assert write_exclusively(tmp_path / "a.json", b"first")
    assert not write_exclusively(tmp_path / "a.json", b"second")
    assert (tmp_path / "a.json").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.usefixtures("no_hard_links")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, None])
def test_a_disk_without_hard_links_and_exclusive_renames_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(number or 0)
        return -1

    library = type("CDLL", (), {"__init__": lambda *_, **__: None} | ({"renameat2": refuse} if number else {}))
    monkeypatch.setattr(ctypes, "CDLL", library)  # None: a C library that is too old
    with pytest.raises(OSError, match=r"neither hard links .*not permitted.* use another disk.*a\.json") as caught:
        write_exclusively(tmp_path / "a.json", b"x")
    assert (caught.value.errno, os.listdir(tmp_path)) == (errno.EOPNOTSUPP, [])


@pytest.mark.usefixtures("no_hard_links")
def test_any_other_failure_to_rename_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(ctypes, "CDLL", type("CDLL", (), {"__init__": lambda *_, **__: None, "renameat2": fail}))
    with pytest.raises(OSError, match=r"Input/output error.*a\.json"):
        write_exclusively(tmp_path / "a.json", b"x")
    assert os.listdir(tmp_path) == []


def test_any_other_failure_to_link_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str, **_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="Input/output"):
        write_exclusively(tmp_path / "a.json", b"x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("write", [write_exclusively, write_replacing])
def test_a_full_disk_is_said_by_name_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write) -> None:  # type: ignore[no-untyped-def]
    def fill(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # where space is only found to be missing at the end

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(OSError, match=r"No space left on device.*left nothing of it.*a\.json") as caught:
        write(tmp_path / "a.json", b"x")
    assert (caught.value.errno, os.listdir(tmp_path)) == (errno.ENOSPC, [])


def test_a_write_that_the_kernel_cuts_short_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; from pathlib import Path; from manifests import write_exclusively\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_exclusively(Path(sys.argv[1], 'a.json'), b'x' * 100_000)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "File too large; could not write this file" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_already_there_is_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"first")
    before = path.stat()
    assert not write_exclusively(path, b"second")
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == (b"first", before.st_mtime_ns, before.st_ino)
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_killed_writer_leaves_no_half_file_under_the_real_name(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from manifests import write_exclusively\n"
        "for i in range(10**6): write_exclusively(Path(sys.argv[1], f'{i}.json'), b'x' * 100_000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    deadline = time.monotonic() + 240
    while not (tmp_path / "2.json").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    visible = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert len(visible) >= 3
    assert {path.stat().st_size for path in visible} == {100_000}
    assert len(list(tmp_path.iterdir())) - len(visible) <= 1


def test_a_link_whose_answer_was_lost_counts_as_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_over_nfs(source: str, target: str, **folders: Any) -> None:
        link(source, target, **folders)
        raise FileExistsError(errno.EEXIST, "asked twice")

    monkeypatch.setattr(os, "link", link_over_nfs)
    assert write_exclusively(tmp_path / "a.json", b"ours")
    assert (tmp_path / "a.json").read_bytes() == b"ours"


def test_a_file_is_on_disk_before_it_has_its_name_and_the_name_before_success_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, link, replace = os.fsync, os.link, os.replace

    def record(name: str, act, *arguments, **folders) -> None:  # type: ignore[no-untyped-def]
        if name == "fsync":
            name = "sync folder" if os.path.isdir(f"/proc/self/fd/{arguments[0]}") else "sync file"
        steps.append(name)
        act(*arguments, **folders)

    monkeypatch.setattr(os, "fsync", lambda descriptor: record("fsync", fsync, descriptor))
    monkeypatch.setattr(os, "link", partial(record, "name", link))
    monkeypatch.setattr(os, "replace", partial(record, "name", replace))
    write_exclusively(tmp_path / "a.json", b"x")
    write_replacing(tmp_path / "a.json", b"y")
    assert steps == ["sync file", "name", "sync folder"] * 2


def test_replacing_gives_the_new_content_whatever_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.failure.json"
    for content in (b"first", b"", b"third"):
        write_replacing(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("write", [write_exclusively, write_replacing])
def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "folder").mkdir()
    if write is write_exclusively:
        assert not write(tmp_path / "folder", b"x")
    else:
        with pytest.raises(OSError, match="folder"):
            write(tmp_path / "folder", b"x")
    assert os.listdir(tmp_path) == ["folder"]


CONTENTS = {"zarr.json": b"{}", "a/c/0": b"", "a-b": b"x" * 3_000_000, "a.b/c": b"\0"}


@pytest.fixture
def new(tmp_path: Path) -> NewFolder:
    """A folder into which CONTENTS were written, and something beside it."""
    new = place_of(tmp_path).new_folder("p.zarr")
    for name, content in CONTENTS.items():
        new.write(name, content)
    (tmp_path / "beside").write_bytes(b"not in the folder")
    return new


@pytest.fixture
def folder(tmp_path: Path, new: NewFolder) -> Path:
    return tmp_path / new.name


def test_files_are_recorded_with_their_digests_sorted_by_path(new: NewFolder, folder: Path) -> None:
    assert new.publish() == tuple(
        FileRecord(path=f"p.zarr/{name}", size_bytes=len(CONTENTS[name]), sha256=hashlib.sha256(CONTENTS[name]).hexdigest())
        for name in sorted(CONTENTS)
    )
    assert sha256_file(folder / "a-b") == hashlib.sha256(CONTENTS["a-b"]).hexdigest()


def test_a_file_that_is_written_again_or_taken_back_is_recorded_as_it_is_in_the_end(new: NewFolder) -> None:
    new.write("a-b", b"other")
    new.remove("a.b/c")
    assert {record.path: record.size_bytes for record in new.publish()} == {
        "p.zarr/zarr.json": 2,
        "p.zarr/a/c/0": 0,
        "p.zarr/a-b": 5,
    }
    with new.open("a-b") as stream:
        assert stream.read() == b"other"


def test_a_folder_that_is_there_is_not_written_into(new: NewFolder, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"p\.zarr"):
        place_of(tmp_path).new_folder(new.name)


def test_publishing_syncs_each_file_and_every_folder_after_what_is_in_it_and_the_parent_last(
    new: NewFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    new.publish()
    places = [*CONTENTS, "a", "a/c", "a.b", ".", ".."]
    assert sorted(synced) == sorted(str((folder / name).resolve()) for name in places)
    for place in synced:
        assert all(inner in synced[: synced.index(place)] for inner in synced if inner.startswith(f"{place}/"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "a/c/0").unlink(), "a/c/0 was written and is gone"),
        (lambda folder: (folder / "a/c/1").touch(), "a/c/1 is there and was not written"),
        (lambda folder: (folder / "a/link").symlink_to("c"), "a/link is there and was not written"),
        (lambda folder: (folder / "a-b").write_bytes(b"x"), "found 1 bytes, but 3000000 were written"),
        (lambda folder: shutil.rmtree(folder / "a"), "a/c/0 was written and is gone"),
        (shutil.rmtree, "zarr.json was written and is gone"),
    ],
)
def test_a_folder_that_does_not_hold_what_was_written_is_refused(
    new: NewFolder, folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    with pytest.raises(UnexpectedFilesError, match=message):
        new.publish()


def test_a_folder_into_which_nothing_was_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnexpectedFilesError, match="nothing was written"):
        place_of(tmp_path).new_folder("p.zarr").publish()


def test_a_folder_that_cannot_be_listed_is_an_error_at_every_depth(new: NewFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE, say: once, at the n-th folder that is listed, for every n."""
    scandir = os.scandir
    for nth in range(4):
        left = [nth]

        def list_or_fail(path: int, left: list[int] = left):  # type: ignore[no-untyped-def]
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
            return scandir(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", list_or_fail)
            with pytest.raises(OSError, match="Too many open files"):
                new.publish()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("write", [write_exclusively, write_replacing])
def test_a_writer_that_is_interrupted_before_its_file_has_its_name_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, write
) -> None:  # type: ignore[no-untyped-def]
    def interrupt(*_: object, **__: object) -> None:
        raise error

    for call in ("fsync", "link" if write is write_exclusively else "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, interrupt)
            with pytest.raises(type(error)):
                write(tmp_path / "a.json", b"x")
        assert os.listdir(tmp_path) == []


def test_where_the_file_aside_cannot_be_removed_either_the_first_error_is_raised_and_the_second_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(message: str, *_: object, **__: object) -> None:
        raise OSError(errno.EIO, message)

    monkeypatch.setattr(os, "link", partial(fail, "the first"))
    monkeypatch.setattr(os, "unlink", partial(fail, "the second"))
    with pytest.raises(OSError, match="the first") as caught:
        write_exclusively(tmp_path / "a.json", b"x")
    assert "the second" in caught.value.__notes__[0]
    (aside,) = os.listdir(tmp_path)
    assert ASIDE_NAME.fullmatch(aside)  # `clean` takes it


def test_every_folder_that_is_made_is_synced_in_its_parent_also_where_its_maker_died_before_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    make_folder(tmp_path / "run/columns/images")
    assert synced == [str((tmp_path / place).resolve()) for place in ("..", "", "run", "run/columns")]
    (tmp_path / "dead/columns").mkdir(parents=True)
    synced.clear()
    for again in (["dead", "dead/columns"], ["dead/columns"]):
        make_folder(tmp_path / "dead/columns/images")
        assert synced == [str(tmp_path / place) for place in again]
        synced.clear()


def test_a_folder_whose_parent_may_be_changed_but_not_read_is_made_all_the_same(tmp_path: Path) -> None:
    parent = tmp_path / "dropbox"
    parent.mkdir()
    parent.chmod(0o333)
    script = (
        "import os, sys; from pathlib import Path; from manifests import make_folder\n"
        "os.getuid() or os.seteuid(65534)\n"
        "make_folder(Path('run')); print(os.path.isdir('run'))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], cwd=parent, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
