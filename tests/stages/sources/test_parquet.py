"""Parquet files of images: the column found or asked for, each row an image under a name that stays, damage named."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.sources.catalogue import SourceImages, SourceNotFoundError, expand_sources, read_images, read_source
from stages.sources.source import SourceContent
from tests.stages.sources.parquet_files import published, write_published


def _read(path: Path, column: str | None = None) -> SourceContent:
    (source,) = expand_sources([str(path) + (f"?column={column}" if column else "")])
    return read_source(source)


def _bytes(number: int) -> bytes:
    return random.Random(number).randbytes(50 + number)


def test_a_published_file_gives_its_images_by_the_paths_it_states(tmp_path: Path):
    rows = [published(_bytes(i), f"n0144/{i}.JPEG") for i in range(250)]
    path = write_published(tmp_path / "data/train-00000-of-00012-3f2a.parquet", rows)
    (source,) = expand_sources([str(tmp_path)])  # a data set's folder stands for its files
    assert (source.name, source.kind, source.column, source.location) == (path.stem, "parquet", "image", path)
    found = read_source(source)
    assert [row.key for row in found.rows[:2]] == ["n0144/0.JPEG", "n0144/1.JPEG"]
    assert [(row.member, row.offset) for row in found.rows[-1:]] == [("image[249]", 249)]
    assert (found.problems, found.size_bytes) == ((), path.stat().st_size)
    assert list(read_images(source, found.rows)) == [_bytes(i) for i in range(250)]
    wanted = found.rows[90:220:3]
    images, order = SourceImages(source, wanted), random.Random(1).sample(range(len(wanted)), len(wanted))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(images.read, order)) == [_bytes(wanted[i].offset) for i in order]
    assert [images.read(3), images.read(3)] == [_bytes(wanted[3].offset)] * 2


def test_rows_without_a_path_of_their_own_are_named_after_file_and_row(tmp_path: Path):
    alike = write_published(tmp_path / "a.parquet", [published(b"1", "image.png"), published(b"2", "image.png")])
    assert [row.key for row in _read(alike).rows] == ["a/000000", "a/000001"]
    some = write_published(tmp_path / "b.parquet", [published(b"1", "x.png"), published(b"2"), published(b"3", ""), None])
    assert [row.key for row in _read(some).rows] == ["x.png", "b/000001", "b/000002", "b/000003"]
    hostile = write_published(tmp_path / "c.parquet", [published(b"1", "a\nb\x1b[2J")])
    assert [row.key for row in _read(hostile).rows] == ["a\\nb\\x1b[2J"]


def test_rows_without_bytes_are_images_without_bytes_and_their_neighbours_are_read(tmp_path: Path):
    path = write_published(
        tmp_path / "a.parquet", [None, published(b""), published(b"x"), {"bytes": None, "path": "y.jpg"}], group=3
    )
    (source,) = expand_sources([str(path)])
    assert list(read_images(source, read_source(source).rows)) == [b"", b"", b"x", b""]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_plain_column_is_found_by_its_type_or_among_several_by_its_name(tmp_path: Path, kind: pa.DataType):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"__key__": ["k"], "payload": pa.array([b"x"], kind), "n": [1]}), path)
    assert [row.member for row in _read(path).rows] == ["payload[0]"]
    pq.write_table(pa.table({"mask": pa.array([b"m"], kind), "jpg": pa.array([b"j"], kind)}), path)
    assert [row.member for row in _read(path).rows] == ["jpg[0]"]
    assert [row.member for row in _read(path, "mask").rows] == ["mask[0]"]


def test_sound_beside_pictures_is_no_column_of_images(tmp_path: Path):
    both = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {b"huggingface": b'{"info": {"features": {"a.wav": {"_type": "Audio"}, "picture": {"_type": "Image"}}}}'}
    schema = pa.schema([("a.wav", both), ("picture", both)], metadata=metadata)
    pq.write_table(
        pa.table({"a.wav": [{"bytes": b"s", "path": None}], "picture": [{"bytes": b"p", "path": None}]}, schema),
        tmp_path / "a.parquet",
    )
    assert [row.member for row in _read(tmp_path / "a.parquet").rows] == ["picture[0]"]
    (source,) = expand_sources([f"{tmp_path / 'a.parquet'}?column=a.wav"])
    assert list(read_images(source, read_source(source).rows)) == [b"s"]


def test_several_columns_of_images_are_refused_until_one_is_named(tmp_path: Path):
    path = write_published(tmp_path / "a.parquet", [published(b"1")], columns={"depth_map": [published(b"2")]})
    with pytest.raises(
        SourceNotFoundError, match=r"a\.parquet: the columns image, depth_map may all be images; name one, as in \?column=image"
    ):
        expand_sources([str(path)])
    (source,) = expand_sources([f"{tmp_path}/*.parquet?column=depth_map"])
    assert list(read_images(source, read_source(source).rows)) == [b"2"]
    both = expand_sources([f"{path}?column=image", f"{path}?column=depth_map", f"{path}?column=image"])
    assert [(each.name, each.column) for each in both] == [("a", "image"), ("a-2", "depth_map")]
    with pytest.raises(SourceNotFoundError, match=r"no column 'imgae' of images; found image, depth_map"):
        expand_sources([f"{path}?column=imgae"])
    (tmp_path / "photos").mkdir()
    with pytest.raises(SourceNotFoundError, match=r"no Parquet file, so it has no column 'image'"):
        expand_sources([f"{tmp_path / 'photos'}?column=image"])


@pytest.mark.parametrize("metadata", [b"[[[", b'{"info": 3}', b'{"info": {"features": {"a": 5}}}', b"[" * 100_000])
def test_metadata_that_makes_no_sense_says_nothing(tmp_path: Path, metadata: bytes):
    schema = pa.schema([("a", pa.binary())], metadata={b"huggingface": metadata})
    pq.write_table(pa.table({"a": [b"x"]}, schema), tmp_path / "a.parquet")
    assert len(_read(tmp_path / "a.parquet").rows) == 1


def test_a_file_without_images_is_refused_with_the_columns_it_has(tmp_path: Path):
    pq.write_table(pa.table({"url": ["http://a"], "images": [[b"x"]]}), tmp_path / "a.parquet")
    with pytest.raises(SourceNotFoundError, match=r"no column of images among url, images; expected one of type binary"):
        expand_sources([str(tmp_path / "a.parquet")])


@pytest.mark.parametrize("name", ["cut", "begun", "empty", "foreign", "encrypted", "garbage"])
def test_what_is_called_parquet_and_is_damaged_or_none_is_one_problem_of_its_own_source(tmp_path: Path, name: str):
    sound = write_published(tmp_path / "sound.parquet", [published(_bytes(i)) for i in range(10)])
    content = sound.read_bytes()
    (tmp_path / "bad.parquet").write_bytes(
        {
            "cut": content[: len(content) // 2],
            "begun": content[:4],
            "empty": b"",
            "foreign": b"PK\3\4" * 100,
            "encrypted": content[:-4] + b"PARE",
            "garbage": content[:-300] + bytes(292) + content[-8:],
        }[name]
    )
    bad, good = expand_sources([str(tmp_path / "bad.parquet"), str(sound)])
    assert [problem.kind for problem in read_source(bad).problems] == ["damaged_parquet", "no_images"]
    assert len(read_source(good).rows) == 10


def test_a_damaged_page_takes_none_but_the_rows_that_need_it(tmp_path: Path):
    path = write_published(tmp_path / "a.parquet", [published(_bytes(i) * 100) for i in range(30)], group=10)
    (source,) = expand_sources([str(path)])
    rows = read_source(source).rows
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"a\.parquet: image\[12\] cannot be read: "):
        list(read_images(source, rows[12:13]))
    assert list(read_images(source, [*rows[:10], *rows[20:]])) == [_bytes(i) * 100 for i in (*range(10), *range(20, 30))]


def test_a_file_that_has_changed_since_is_refused(tmp_path: Path):
    path = write_published(tmp_path / "a.parquet", [published(_bytes(i)) for i in range(10)])
    (source,) = expand_sources([str(path)])
    rows = read_source(source).rows
    write_published(path, [published(_bytes(i) * 2) for i in range(10)])
    with pytest.raises(OSError, match=r"image\[3\] cannot be read: it is no longer what was catalogued"):
        list(read_images(source, rows[3:]))
    write_published(path, [published(_bytes(i)) for i in range(3)])
    with pytest.raises(OSError, match=r"no longer what was catalogued"):
        list(read_images(source, rows[3:]))
    path.unlink()
    with pytest.raises(OSError, match=r"image\[0\] cannot be read"):
        list(read_images(source, rows))


def test_a_folder_with_a_photograph_is_a_folder_whatever_lies_beside_it(tmp_path: Path):
    write_published(tmp_path / "metadata.parquet", [published(b"x")])
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.jpg").write_bytes(b"x")
    (source,) = expand_sources([str(tmp_path)])
    assert (source.kind, [row.key for row in read_source(source).rows]) == ("folder", ["train/a.jpg"])


def test_a_row_group_is_streamed_page_by_page_and_never_held(tmp_path: Path):
    """One row group of 64 MB in pages of 4: what Arrow allocates while it is read stays far below that."""
    path, size = tmp_path / "big.parquet", 1 << 20
    table = pa.table({"image": [bytes([i]) * size for i in range(64)]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_batch_size=4)
    del table
    (source,) = expand_sources([str(path)])
    before, highest = pa.total_allocated_bytes(), 0
    for content in read_images(source, read_source(source).rows[::8]):
        highest = max(highest, pa.total_allocated_bytes() - before)
        assert len(content) == size
    assert highest < 32 * size
