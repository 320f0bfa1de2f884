"""The promises of `manifests.place` that hold on a disk and in a bucket alike, and those of the store alone."""

from __future__ import annotations

import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from manifests import RunInUseError
from manifests.bucket_folder import BucketFolder
from manifests.bucket_store import ObjectChangedError, open_object, package, put
from manifests.errors import RefusedError
from manifests.location import Location, Url, location_of
from manifests.place import Entry, Place, TooLargeError, UnexpectedFilesError, place_of
from tests.buckets.proxy import FaultProxy


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    root: Location = tmp_path / "run" if request.param == "disk" else request.getfixturevalue("bucket") / "run"
    return place_of(root)


def test_of_many_who_create_a_file_one_is_told_that_it_was_it(place: Place) -> None:
    contents = [f"writer {number}".encode() for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda content: place.create("columns/a/1.json", content), contents))
    assert won.count(True) == 1
    assert place.read("columns/a/1.json", limit_bytes=100) == contents[won.index(True)]


def test_what_is_written_is_read_listed_and_removed(place: Place) -> None:
    assert place.entries("columns") == place.tree("columns") == []
    place.replace("columns/a/1.json", b"old")
    place.replace("columns/a/1.json", b"content")
    place.replace("columns/a/b/c", b"more")
    assert place.entries("columns/a") == [Entry("1.json", "file"), Entry("b", "folder")]
    assert place.tree("columns") == [
        *(Entry("a", "folder"), Entry("a/1.json", "file", 7), Entry("a/b", "folder"), Entry("a/b/c", "file", 4))
    ]
    assert set(place.states("columns/a")) == {"1.json", "b"}
    with place.open("columns/a/1.json") as stream:
        stream.seek(-4, 2)
        assert (stream.read(2), stream.tell(), stream.read()) == (b"te", 5, b"nt")
    with pytest.raises(TooLargeError, match="found 7 bytes, expected at most 6"):
        place.read("columns/a/1.json", limit_bytes=6)
    place.remove("columns/a")
    place.remove("columns/a")
    assert not place.exists("columns/a/1.json")
    with pytest.raises(FileNotFoundError):
        place.read("columns/a/1.json", limit_bytes=6)
    with pytest.raises(FileNotFoundError):
        place.open("columns/a/1.json")


def test_a_folder_is_published_with_the_digests_of_what_was_written(place: Place) -> None:
    folder = place.new_folder("columns/a/p.zarr")
    large = bytes(range(256)) * (1 << 13)
    for name, content in {"zarr.json": b"{}", "x/c/0": large, "gone": b"1"}.items():
        folder.write(name, content)
    folder.write("zarr.json", b"{ }")
    folder.remove("gone")
    for name, content in {"zarr.json": b"{ }", "x/c/0": large}.items():
        with folder.open(name) as stream:
            assert stream.read() == content
    assert [(file.path, file.size_bytes, file.sha256) for file in folder.publish()] == [
        ("p.zarr/x/c/0", len(large), hashlib.sha256(large).hexdigest()),
        ("p.zarr/zarr.json", 3, hashlib.sha256(b"{ }").hexdigest()),
    ]

    def again() -> None:
        other = place.new_folder("columns/a/p.zarr")
        other.write("zarr.json", b"[]")
        other.publish()

    with pytest.raises(FileExistsError):
        again()
    assert place.read("columns/a/p.zarr/zarr.json", limit_bytes=9) == b"{ }"


def test_a_folder_in_which_there_is_more_than_was_written_is_not_published(place: Place) -> None:
    folder = place.new_folder("columns/a/p.zarr")
    folder.write("zarr.json", b"{}")
    place.replace("columns/a/p.zarr/other", b"")
    with pytest.raises(UnexpectedFilesError, match="other"):
        folder.publish()


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a//b", "./a", "", "a\0b"])
def test_a_name_that_is_not_below_the_run_is_a_mistake_of_the_caller(place: Place, name: str) -> None:
    for call in (place.open, place.remove, lambda name: place.create(name, b"")):
        with pytest.raises(ValueError, match="expected"):
            call(name)


def test_who_wants_a_run_alone_waits_for_nobody_and_disturbs_nobody(place: Place) -> None:
    with place.hold(exclusive=False), place.hold(exclusive=False):
        with pytest.raises(RunInUseError, match="in use by a labelling"):
            with place.hold(exclusive=True):
                pass
    with place.hold(exclusive=True), pytest.raises(RunInUseError, match="in use by `python -m manifests repair`"):
        with place.hold(exclusive=False):
            pass


def test_a_state_is_another_where_the_content_is(bucket: Url) -> None:
    place = place_of(bucket)
    place.replace("a/1", b"one")
    first = place.states("a")["1"]
    place.replace("a/1", b"two")
    assert first != place.states("a")["1"]
    place.replace("a/1", b"one")
    assert first == place.states("a")["1"]


def test_hostile_names_are_themselves(bucket: Url) -> None:
    names = ["a b", "ü", "100%", "%2F", "a#b?c", "a+b", "'\"<&>", "\u202e"]
    for name in names:
        place_of(bucket).replace(f"x/{name}", name.encode())
    assert sorted(entry.name for entry in place_of(bucket).entries("x")) == sorted(names)
    assert [place_of(bucket).read(f"x/{name}", limit_bytes=99).decode() for name in names] == names


def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed(bucket: Url) -> None:
    put(bucket / "tar", b"a" * (1 << 19))
    with open_object(bucket / "tar") as stream:
        assert stream.read(10) == b"a" * 10
        put(bucket / "tar", b"b" * (1 << 19))
        stream.seek(1 << 18)
        with pytest.raises(ObjectChangedError, match="is another object than it was"):
            stream.read(10)


def test_an_empty_object_is_read(bucket: Url) -> None:
    put(bucket / "empty", b"")
    with open_object(bucket / "empty") as stream:
        assert (stream.read(), stream.seek(0, 2)) == (b"", 0)


def test_a_place_travels_without_credentials(bucket: Url, proxy: FaultProxy) -> None:
    place = place_of(bucket)
    place.replace("a", b"1")
    assert b"a-secret" not in pickle.dumps(place)
    assert pickle.loads(pickle.dumps(place)).read("a", limit_bytes=9) == b"1"


def test_errors_name_the_object_and_no_secret(bucket: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        place_of(Url("s3://nobody-has-this/run")).create("run.json", b"")
    with pytest.raises(FileNotFoundError, match=str(bucket / "gone")) as raised:
        place_of(bucket).read("gone", limit_bytes=9)
    assert "a-secret" not in str(raised.value)
    monkeypatch.setenv("BUCKET_TIMEOUT_S", "soon")
    with pytest.raises(RefusedError, match="BUCKET_TIMEOUT_S is 'soon', expected a number of seconds"):
        place_of(bucket).exists("a")


def test_a_store_that_lets_two_win_is_refused(bucket: Url, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    place_of(bucket).refuse_unsafe_creates()
    assert place_of(bucket).entries("") == []
    real = package().put

    def forgets_the_condition(*arguments: object, mode: object = None, **options: object) -> object:
        return real(*arguments, **options)

    monkeypatch.setattr("obstore.put", forgets_the_condition)
    with pytest.raises(RefusedError, match="lets several writers create the same object"):
        place_of(bucket).refuse_unsafe_creates()


@pytest.mark.parametrize("text", ["file:///data/run", "http://host/run", "hdfs://host/run"])
def test_a_url_of_no_bucket_is_no_run(text: str) -> None:
    with pytest.raises(RefusedError, match="a URL that nothing is written to"):
        place_of(location_of(text))


def test_a_url_never_becomes_a_path() -> None:
    with pytest.raises(TypeError):
        Path(Url("s3://bucket/run"))  # type: ignore[arg-type]
    assert str(Url("s3://bucket/run/") / "a") == "s3://bucket/run/a"
    assert (Url("s3://b/x/y").parent, Url("s3://b/x/y").bucket, Url("s3://b").parent) == (
        *(Url("s3://b/x"), Url("s3://b"), Url("s3://b")),
    )
    for text in ("s3://", "s3:///", "run"):
        with pytest.raises(ValueError, match="expected a URL with a bucket"):
            Url(text)


def test_what_is_a_day_old_by_the_stores_clock_is_abandoned(bucket: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_of(bucket)
    assert isinstance(place, BucketFolder)
    place.replace("columns/a/p.zarr/x", b"1")
    assert not place.is_abandoned("columns/a/p.zarr")
    monkeypatch.setattr("manifests.bucket_folder.ABANDONED_AFTER", timedelta(seconds=-9))
    assert place.is_abandoned("columns/a/p.zarr")
    assert place.is_abandoned("columns/a/never.zarr")
