"""Which of a run's sources a command's photographs are, and which are new to it.

A source of a run never changes: a later command that names it must find the same images in it, wherever it lies by then. Files
that were added to a folder are left out and counted, or taken in as a further source that extends the first. An image that is
gone, or has another size or place, is refused by name.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

import manifests
from manifests.place import place_of
from stages.sources.catalogue import (
    CatalogueRow,
    Source,
    SourceContent,
    cross_source_problems,
    expand_sources,
    read_source,
)

_READERS = 8  # sources catalogued at a time: over a network the time goes into waiting
_SHOWN = 3  # names in a message
_SCHEMA = pa.schema([("key", pa.string()), ("member", pa.string()), ("offset", pa.int64()), ("size_bytes", pa.int64())])


class RunMismatchError(ValueError):
    """The folder holds a run that this command would not have made."""


FoundSource = tuple[Source, SourceContent]


class NewSource(NamedTuple):
    """A source that the run does not have yet, with the name that it gets there; `extends` is the one that it adds files to."""

    source: Source
    content: SourceContent
    extends: str | None


@dataclass(frozen=True, kw_only=True)
class MatchedSources:
    """A command's photographs: `known` are sources of the run where they lie now, with their images in the run's order; `new`
    are yet to be added; `left_out` says in words which files of known folders are neither."""

    known: tuple[tuple[Source, tuple[CatalogueRow, ...]], ...]
    new: tuple[NewSource, ...]
    left_out: tuple[str, ...]


def read_sources(patterns: Sequence[str]) -> tuple[FoundSource, ...]:
    """List the images of every source. Raises SourceNotFoundError for a pattern without one."""
    sources = expand_sources(patterns)
    with ThreadPoolExecutor(_READERS) as pool:
        return tuple(zip(sources, pool.map(read_source, sources), strict=True))


def match_sources(
    run_dir: Path, recorded: Sequence[manifests.Catalogue], found: Sequence[FoundSource], *, add_new_files: bool
) -> MatchedSources:
    """Tell a run's sources from new ones. Raises RunMismatchError, naming files, for one of the run's that has changed."""
    families: dict[str, list[manifests.Catalogue]] = {}
    for catalogue in sorted(recorded, key=lambda catalogue: catalogue.extends is not None):
        families.setdefault(catalogue.extends or catalogue.source, []).append(catalogue)
    names = {catalogue.source for catalogue in recorded}
    known, new, left_out = [], [], []
    for source, content in found:
        name = _family_of(run_dir, families, source, content)
        if name is None:
            new.append(NewSource(_renamed(source, names), content, extends=None))
            continue
        of_run, added = _compared(run_dir, families.pop(name), source, content)
        known += of_run
        if added and add_new_files:
            rest = replace(content, rows=added, size_bytes=sum(row.size_bytes for row in added), problems=())
            new.append(NewSource(_renamed(replace(source, name=name), names), rest, extends=name))
        elif added:
            left_out.append(f"{source.location}: {len(added)} new files are not in the run: {_few(row.key for row in added)}")
    return MatchedSources(known=tuple(known), new=tuple(new), left_out=tuple(left_out))


def add_sources(run_dir: Path, recorded: Sequence[manifests.Catalogue], matched: MatchedSources) -> None:
    """Write the new sources' catalogues. Raises RunMismatchError where another command has just added one of that name."""
    if not matched.new:
        return
    problems = _problems_across(run_dir, recorded, matched)
    for source, content, extends in matched.new:
        content = replace(content, problems=(*content.problems, *problems[source.name]))
        table = table_of(content.rows)
        catalogue = manifests.Catalogue(
            source=source.name,
            location=str(source.location),
            source_kind=source.kind,
            size_bytes=content.size_bytes,
            images=len(content.rows),
            rows_sha256=rows_sha256(content.rows),
            table_sha256=hashlib.sha256(table).hexdigest(),
            problems=content.problems,
            extends=extends,
        )
        place, name = place_of(run_dir), manifests.catalogue_path(Path(), source.name).as_posix()
        place.create(manifests.table_path(Path(), catalogue).as_posix(), table)
        if not place.create(name, manifests.to_json(catalogue)):
            first = manifests.load_catalogue(run_dir, source.name)
            if first.rows_sha256 != catalogue.rows_sha256:
                raise RunMismatchError(f"{place.shown(name)}: another command has just added a source of this name; run again")


def rows_sha256(rows: Iterable[CatalogueRow]) -> str:
    """A digest of every image's key, place and size; moving or renaming a tar or a folder leaves it as it is."""
    digest = hashlib.sha256()
    for row in rows:
        line = f"{row.key}\0{row.member}\0{row.offset}\0{row.size_bytes}\n"
        digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def table_of(rows: Sequence[CatalogueRow]) -> bytes:
    """The parquet file of a source's images."""
    columns = {name: [getattr(row, name) for row in rows] for name in _SCHEMA.names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def _family_of(
    run_dir: Path, families: dict[str, list[manifests.Catalogue]], source: Source, content: SourceContent
) -> str | None:
    """The name of the run's source that this one is: of the same place; of the same images, moved; or of the same name or
    images where the run's own place is empty, so that it may have been moved and changed. None for a new one."""
    candidates = {name: family[0] for name, family in families.items() if family[0].source_kind == source.kind}
    for name, first in candidates.items():
        if first.location == str(source.location):
            return name
    digest = rows_sha256(content.rows)
    gone = {name: first for name, first in candidates.items() if not Path(first.location).exists()}
    for name, first in candidates.items():
        if first.rows_sha256 == digest and (name == source.name or name in gone):
            return name
    if source.name in gone:
        return source.name
    there = {row.key: row for row in content.rows}
    for name in gone if source.kind == "folder" else ():
        if all(_same(row, there.get(row.key)) for catalogue in families[name] for row in read_rows(run_dir, catalogue)):
            return name
    return None


def _compared(
    run_dir: Path, family: Sequence[manifests.Catalogue], source: Source, content: SourceContent
) -> tuple[list[tuple[Source, tuple[CatalogueRow, ...]]], tuple[CatalogueRow, ...]]:
    """Each source of the family with its images as they were found, and the images that none of them has."""
    if len(family) == 1 and family[0].rows_sha256 == rows_sha256(content.rows):
        return [(replace(source, name=family[0].source), content.rows)], ()
    there = {row.key: row for row in content.rows}
    taken: set[str] = set()
    known, gone, changed = [], [], []
    for catalogue in family:
        rows = read_rows(run_dir, catalogue)
        taken.update(row.key for row in rows)
        gone += [row.key for row in rows if row.key not in there]
        changed += [row.key for row in rows if row.key in there and not _same(row, there[row.key])]
        known.append((replace(source, name=catalogue.source), tuple(there[row.key] for row in rows if row.key in there)))
    added = tuple(row for row in content.rows if row.key not in taken)
    what = [f"{len(keys)} {words} ({_few(keys)})" for keys, words in ((gone, "are gone"), (changed, "have changed")) if keys]
    if added and source.kind == "tar":
        what.append(f"{len(added)} are new ({_few(row.key for row in added)})")
    if what:
        raise RunMismatchError(
            f"source {family[0].source}, {source.location}: of the images that the run was made with, or in this tar, "
            f"{', '.join(what)}; restore them, or label what is there now into a new run"
        )
    return known, added


def _same(row: CatalogueRow, other: CatalogueRow | None) -> bool:
    return other is not None and (row.member, row.offset, row.size_bytes) == (other.member, other.offset, other.size_bytes)


def read_rows(run_dir: Path, catalogue: manifests.Catalogue) -> list[CatalogueRow]:
    """The images of one of the run's sources, as they were when it was added. Raises RunMismatchError for a damaged table."""
    place = manifests.table_path(Path(), catalogue).as_posix()
    with place_of(run_dir).open(place) as stream:
        content = stream.read()
    if hashlib.sha256(content).hexdigest() != catalogue.table_sha256:
        raise RunMismatchError(
            f"{run_dir / place}: damaged; `python -m manifests verify {run_dir}` names all damage of the run"
        )
    table = pq.read_table(pa.BufferReader(content), schema=_SCHEMA)
    return [CatalogueRow(**row) for row in table.to_pylist()]


def _renamed(source: Source, names: set[str]) -> Source:
    """The source under the first name that is free, with a number where its own is taken; takes the name."""
    name, count = source.name, 1
    while name in names:
        count += 1
        name = f"{source.name}-{count}"
    names.add(name)
    return replace(source, name=name)


def _problems_across(
    run_dir: Path, recorded: Sequence[manifests.Catalogue], matched: MatchedSources
) -> dict[str, list[manifests.Problem]]:
    """Images of new sources whose key an earlier source has too, by the new source's name."""
    there = {source.name: rows for source, rows in matched.known}
    contents: list[FoundSource] = []
    for catalogue in recorded:
        rows = there.get(catalogue.source) or tuple(read_rows(run_dir, catalogue))
        source = Source(name=catalogue.source, kind=catalogue.source_kind, location=Path(catalogue.location))
        contents.append((source, SourceContent(rows=rows, size_bytes=0, problems=())))
    contents += [(new.source, new.content) for new in matched.new]
    problems: dict[str, list[manifests.Problem]] = defaultdict(list)
    for problem in cross_source_problems(contents):
        problems[problem.where.partition(":")[0]].append(problem)
    return problems


def _few(keys: Iterable[str]) -> str:
    names = list(keys)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
