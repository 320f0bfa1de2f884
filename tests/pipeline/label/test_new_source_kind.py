"""A kind of source is one record: registered, the command expands, catalogues, labels and recognises it as any other."""

from __future__ import annotations

from pathlib import Path

import pytest

import manifests
from pipeline.label.command import label
from stages.sources import kinds
from stages.sources.source import CatalogueRow, Found, SourceKind
from tests.conftest import label_config
from tests.pipeline.label.test_growth import write_photos


def _recognises(path: Path) -> bool:
    return path.suffix == ".names" and path.is_file()


def _catalogue(location: Path) -> Found:
    names = location.read_text().split()
    sizes = [Path(name).stat().st_size for name in names]
    rows = [
        CatalogueRow(key=Path(name).stem, member=name, offset=0, size_bytes=size)
        for name, size in zip(names, sizes, strict=True)
    ]
    return Found(rows, sum(sizes), [])


def _read(location: Path, row: CatalogueRow) -> bytes:
    return (location.parent / row.member).read_bytes()


def test_a_file_of_names_is_a_source_once_it_is_registered(tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch):
    named = SourceKind(words="a .names file", recognises=_recognises, catalogue=_catalogue, read=_read, can_grow=True)
    monkeypatch.setitem(kinds.KINDS, "names", named)  # type: ignore[arg-type]
    write_photos(tmp_path / "photos", range(3))
    photos = sorted(map(str, (tmp_path / "photos").iterdir()))
    (tmp_path / "mine.names").write_text("\n".join(photos[:2]))
    config = label_config(tmp_path / "run", (str(tmp_path / "mine.names"),), checkpoints, part_size=2)
    assert label(config).committed == 3
    (source,) = manifests.load_run(tmp_path / "run").sources
    assert (source.source, source.source_kind, source.images) == ("mine", "names", 2)
    assert manifests.verify(tmp_path / "run", deep=True) == []
    (tmp_path / "mine.names").write_text("\n".join(photos))
    grown = label_config(tmp_path / "run", config.sources, checkpoints, part_size=2, add_new_files=True)
    assert label(grown).committed == 3
    assert [source.images for source in manifests.load_run(tmp_path / "run").sources] == [2, 1]
