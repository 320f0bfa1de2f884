"""Tars and folders in a bucket are catalogued and read as those on a disk are, in few requests."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from manifests.bucket_store import ObjectChangedError, put
from manifests.location import Url
from stages.sources import buckets
from stages.sources.catalogue import SourceImages, SourceNotFoundError, expand_sources, read_images, read_source
from tests.buckets.conftest import upload
from tests.buckets.proxy import FaultProxy
from tests.conftest import write_tar
from tests.stages.sources.parquet_files import published, write_published


@pytest.fixture
def tar(tmp_path: Path, bucket: Url) -> tuple[Path, Url]:
    """A tar of 3,000 members of 100 to 3,000 bytes: 6 MB."""
    rng = random.Random(0)
    members = {f"{number:05d}.jpg": rng.randbytes(rng.randrange(100, 3000)) for number in range(3000)}
    path = write_tar(tmp_path / "many.tar", members)
    put(bucket / "many.tar", path.read_bytes())
    return path, bucket / "many.tar"


def test_a_tar_in_a_bucket_is_the_same_source_in_few_requests(tar: tuple[Path, Url], proxy: FaultProxy) -> None:
    (local,), (remote,) = (expand_sources([str(place)]) for place in tar)
    assert (remote.name, remote.kind, remote.location) == (local.name, local.kind, tar[1])
    proxy.forget()
    found = read_source(remote)
    assert found == read_source(local)
    assert proxy.requests.total() <= 10
    proxy.forget()
    rows = found.rows[1000:1064]
    images = SourceImages(remote, rows)
    order = random.Random(1).sample(range(64), 64)
    assert {i: images.read(i) for i in order} == dict(enumerate(read_images(local, rows)))
    assert proxy.requests == {"GET": 1}


def test_a_span_is_never_larger_than_its_limit(
    tar: tuple[Path, Url], monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy
) -> None:
    monkeypatch.setattr(buckets, "_SPAN_BYTES", 20_000)
    (source,) = expand_sources([str(tar[1])])
    rows = read_source(source).rows[:100]
    proxy.forget()
    assert list(read_images(source, rows)) == list(read_images(expand_sources([str(tar[0])])[0], rows))
    assert 5 <= proxy.requests["GET"] <= 30
    apart = (rows[0], rows[50], rows[1])
    assert list(read_images(source, apart)) == list(read_images(expand_sources([str(tar[0])])[0], apart))


def test_a_tar_that_was_replaced_is_refused_by_name(tar: tuple[Path, Url]) -> None:
    (source,) = expand_sources([str(tar[1])])
    rows = read_source(source).rows[:3]
    put(tar[1], tar[0].read_bytes()[:-512] + b"\0" * 1024)
    with pytest.raises(ObjectChangedError, match=r"many\.tar"):
        list(read_images(source, rows))
    (problem,) = read_source(source).problems[:1]
    assert (problem.kind, "another object" in problem.message) == ("unreadable", True)
    anew = expand_sources([str(tar[1])])[0]
    with pytest.raises(OSError, match="no longer has"):
        list(read_images(anew, [replace(rows[0], offset=rows[0].offset + 512)]))


def test_a_folder_in_a_bucket_has_the_images_of_one_on_a_disk_in_the_same_order(tmp_path: Path, bucket: Url) -> None:
    for name in (
        "b.jpg",
        "a/c.jpg",
        "a.jpg",
        "a/b/d.png",
        "a/._c.jpg",
        ".hidden/e.jpg",
        "f.txt",
        "g.cr2",
        "a-b/h.jpg",
        "ä.jpg",
    ):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(name.encode())
    (remote,), (local,) = (
        expand_sources([str(p)]) for p in (upload(tmp_path / "photos", bucket / "photos"), tmp_path / "photos")
    )
    found = read_source(remote)
    assert found == read_source(local)
    assert list(read_images(remote, found.rows)) == [row.member.encode() for row in found.rows]
    put(bucket / "photos" / "b.jpg", b"changed")
    with pytest.raises(OSError, match="no longer has"):
        list(read_images(remote, [row for row in found.rows if row.member == "b.jpg"]))


def test_braces_and_globs_name_sources_and_what_is_not_there_is_told(bucket: Url) -> None:
    for name in ("t/a-0.tar", "t/a-1.tar", "t/b-0.tar", "t/deep/a-2.tar", "p/1.jpg"):
        put(bucket / name, b"\0" * 1024)
    names = [
        str(source.location)[len(str(bucket)) :]
        for source in expand_sources([f"{bucket}/t/a-{{0..1}}.tar", f"{bucket}/t/*.tar"])
    ]
    assert names == ["/t/a-0.tar", "/t/a-1.tar", "/t/b-0.tar"]
    with pytest.raises(SourceNotFoundError) as raised:
        expand_sources([f"{bucket}/t/c.tar", f"{bucket}/none/*.tar", f"{bucket}/none", "hf://datasets/a", "https://host/a.tgz"])
    for part in (
        "t/c.tar: ",
        "none/*.tar: nothing there",
        "none: nothing there",
        "hf://datasets/a: expected",
        "only plain URLs of .tar and .parquet files",
    ):
        assert part in str(raised.value)
    with pytest.raises(SourceNotFoundError, match="inside"):
        expand_sources([str(bucket), f"{bucket}/p"])


def test_a_parquet_file_in_a_bucket_is_the_same_source_and_one_that_was_replaced_is_refused(
    tmp_path: Path, bucket: Url
) -> None:
    images = [published(bytes([i]) * 3000, f"{i}.png") for i in range(120)]
    path = write_published(tmp_path / "a.parquet", images, group=50, columns={"depth": images})
    put(bucket / "a.parquet", path.read_bytes())
    (remote,), (local,) = (expand_sources([f"{place}?column=image"]) for place in (f"{bucket}/*.parquet", path))
    assert (remote.name, remote.kind, remote.column, remote.location) == ("a", "parquet", "image", bucket / "a.parquet")
    found = read_source(remote)
    assert found == read_source(local)
    assert list(read_images(remote, found.rows[40:70])) == list(read_images(local, found.rows[40:70]))
    with pytest.raises(SourceNotFoundError, match=r"a\.parquet: the columns image, depth may all be images"):
        expand_sources([f"{bucket}/a.parquet"])
    put(bucket / "a.parquet", path.read_bytes()[:-1])
    with pytest.raises(OSError, match=r"a\.parquet: image\[40\] cannot be read"):
        list(read_images(remote, found.rows[40:70]))
    assert [problem.kind for problem in read_source(remote).problems] == ["unreadable", "no_images"]
