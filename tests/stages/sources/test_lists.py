"""Lists of paths: what each line is, what is missing by its line, and a list that grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.sources.catalogue import SourceNotFoundError, expand_sources, read_images, read_source
from stages.sources.lists import ListError
from tests.conftest import write_tar
from tests.stages.sources.parquet_files import published, write_published


def _list(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_bytes(end.join(lines).encode("utf-8", "surrogateescape"))
    return path


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Photographs, each of which holds its own name."""
    for name in ("a.jpg", "b c.png", "deep/d.JPEG", "#e.png", "[x]*.png", "f.cr2"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(name.encode())
    return tmp_path / "photos"


def test_the_photographs_of_a_list_are_one_source_in_the_lists_order(tmp_path: Path, elsewhere: Path):
    lines = ["\ufeff# by hand", "", "  deep/d.JPEG ", "b c.png", "./a.jpg", "./#e.png", "[x]*.png", "a.jpg", "deep/../a.jpg"]
    (source,) = expand_sources([f"@{_list(elsewhere / 'mine.txt', *lines, str(elsewhere / 'a.jpg'), end=chr(13) + chr(10))}"])
    assert (source.name, source.kind, source.location) == ("mine", "list", elsewhere / "mine.txt")
    found = read_source(source)
    assert [row.key for row in found.rows] == ["deep/d.JPEG", "b c.png", "a.jpg", "#e.png", "[x]*.png"]
    assert list(read_images(source, found.rows)) == [row.key.encode() for row in found.rows]
    assert found.problems == ()
    (apart,) = expand_sources([f"@{_list(tmp_path / 'deep.txt', str(elsewhere / 'a.jpg'), 'photos/deep/d.JPEG')}"])
    assert [row.key for row in read_source(apart).rows] == ["photos/a.jpg", "photos/deep/d.JPEG"]


def test_a_photograph_above_the_lists_folder_is_named_from_the_root(tmp_path: Path, elsewhere: Path):
    (tmp_path / "lists").mkdir()
    (source,) = expand_sources([f"@{_list(tmp_path / 'lists/l.txt', '../photos/a.jpg')}"])
    (row,) = read_source(source).rows
    assert (row.key, row.member) == (str(elsewhere / "a.jpg").lstrip("/"), str(elsewhere / "a.jpg"))
    assert list(read_images(source, [row])) == [b"a.jpg"]


def test_a_list_names_tars_folders_and_parquet_files_as_the_command_would(tmp_path: Path, elsewhere: Path):
    write_tar(tmp_path / "t.tar", {"1.png": b"1"})
    write_published(tmp_path / "p.parquet", [published(b"2")], columns={"other": [published(b"3")]})
    lines = ["t.tar", "p.parquet?column=other", "photos", "t.tar"]
    sources = expand_sources([f"@{_list(tmp_path / 'all.txt', *lines)}"])
    assert [(source.name, source.kind, source.column) for source in sources] == [
        ("t", "tar", None),
        ("p", "parquet", "other"),
        ("photos", "folder", None),
    ]


def test_what_is_not_there_is_named_by_its_line_and_the_rest_is_taken(tmp_path: Path, elsewhere: Path):
    (elsewhere / "g.png").mkdir()
    lines = ["a.jpg", "gone.jpg", "# nothing", "g.png", "f.cr2", "\udcff.jpg", "deep/d.JPEG"]
    (source,) = expand_sources([f"@{_list(elsewhere / 'mine.txt', *lines)}"])
    found = read_source(source)
    assert [row.key for row in found.rows] == ["a.jpg", "deep/d.JPEG"]
    assert {(problem.where, problem.kind) for problem in found.problems} == {
        ("mine.txt:2", "unreadable"),
        ("mine.txt:4", "not_a_file"),
        ("mine.txt:5", "unread_suffix"),
        ("mine.txt:6", "not_utf8"),
    }
    assert "No such file" in next(problem.message for problem in found.problems if problem.where == "mine.txt:2")


def test_lines_that_cannot_be_told_and_lists_that_are_none_are_refused(tmp_path: Path, elsewhere: Path):
    (tmp_path / "notes.md").write_text("x")
    lines = ["photos", "gone.tar", "notes.md", "@other.txt", "photos/a.jpg", "s3:/x"]
    with pytest.raises(SourceNotFoundError) as raised:
        expand_sources([f"@{_list(tmp_path / 'l.txt', *lines)}"])
    for words in (
        f"l.txt:2: {tmp_path}/gone.tar: nothing there",
        f"l.txt:3: {tmp_path}/notes.md: neither",
        "l.txt:4: @other.txt: a list in a list",
        f"l.txt:5: photos/a.jpg: inside {elsewhere}, which is a source too",
    ):
        assert words in str(raised.value)
    with pytest.raises(SourceNotFoundError, match="names nothing"):
        expand_sources([f"@{_list(tmp_path / 'e.txt', '# only words')}"])
    with pytest.raises(ListError, match="not a text file"):
        expand_sources([f"@{write_tar(tmp_path / 't.tar', {'a.jpg': b''})}"])
    with pytest.raises(ListError, match=r"none\.txt: cannot be read: No such file"):
        expand_sources([f"@{tmp_path}/none.txt"])
    with pytest.raises(SourceNotFoundError, match=r"as a list of paths: @.*l\.txt"):
        expand_sources([str(tmp_path / "l.txt")])
