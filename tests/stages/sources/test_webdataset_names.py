"""Keys of images in tars are WebDataset's: its own function, on the names that we read, is the measure."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from webdataset.tariterators import base_plus_ext

from stages.sources.catalogue import expand_sources, read_source

NAMES = ["a.jpg", "dir/c.jpg", "dir.v1/d.jpeg", "deep/er/e.JPG", "f g.png", "日本/g.webp", "2021-05/h.jpg"]


def _keys(folder: Path, names: list[str]) -> dict[str, str]:
    with tarfile.open(folder / "s.tar", "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    (source,) = expand_sources([str(folder / "s.tar")])
    return {row.member: row.key for row in read_source(source).rows}


@pytest.mark.parametrize("name", NAMES)
def test_an_image_alone_has_webdatasets_key(tmp_path: Path, name: str):
    base, _ = base_plus_ext(name)
    assert list(_keys(tmp_path, [name]).values()) == [base]


def test_members_of_one_key_are_one_sample(tmp_path: Path):
    names = ["7.jpg", "7.json", "7.seg.png", "x/7.jpg"]
    assert {base_plus_ext(name)[0] for name in names} == {"7", "x/7"}
    assert sorted(_keys(tmp_path, names).values()) == ["7", "x/7"]


def test_where_we_differ_on_purpose(tmp_path: Path):
    """Dotted names without a plain one are fields of one sample there, and photographs of their own here; ./ is no folder."""
    names = ["shot.v1.jpg", "shot.v2.jpg", "./i.jpg"]
    assert {base_plus_ext(name)[0] for name in names} == {"shot", "./i"}
    assert sorted(_keys(tmp_path, names).values()) == ["i", "shot.v1", "shot.v2"]
