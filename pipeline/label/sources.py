"""Which of a run's sources a command's photographs are, and which are new to it.

A source of a run never changes: a later command that names it must find the same images in it, wherever it lies by then. Files
that were added to a folder are left out and counted, or taken in as a further source that extends the first. An image that is
gone, or has another size or place, is refused by name.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

import manifests
from manifests.errors import RefusedError
from manifests.location import Location, absolute, is_url, location_of, parents
from manifests.place import place_of
from manifests.run import IMAGES
from stages.sources.buckets import find_urls
from stages.sources.catalogue import (
    COLUMN_SIGN,
    SourceNotFoundError,
    cross_source_problems,
    expand_sources,
    read_images,
    read_source,
    take_name,
)
from stages.sources.kinds import KINDS
from stages.sources.lists import SIGN
from stages.sources.source import CatalogueRow, Source, SourceContent

_READERS = 8  # sources catalogued at a time: over a network the time goes into waiting
_SHOWN = 3  # names in a message
_SCHEMA = pa.schema([("key", pa.string()), ("member", pa.string()), ("offset", pa.int64()), ("size_bytes", pa.int64())])


class RunMismatchError(RefusedError):
    """The folder holds a run that this command would not have made."""


FoundSource = tuple[Source, SourceContent]
Families = Mapping[str, Sequence[manifests.Catalogue]]
"""A run's sources with those that extend them, by the name of the first."""


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


def recorded_sources(run_dir: Location) -> tuple[str, ...]:
    """What names the sources of a run, where they were when they were added, each once, as `--sources` takes it.

    Raises SourceNotFoundError for one that is gone.
    """
    sources = manifests.load_run(run_dir).sources
    places = dict.fromkeys(source.location for source in sources)
    if gone := [place for place in places if not is_url(place) and not Path(place).exists()]:
        raise SourceNotFoundError(f"{', '.join(gone)}: nothing there, where the run had it; name its place by --sources")
    return tuple(dict.fromkeys(_named(run_dir, source) for source in sources))


def _named(run_dir: Location, source: manifests.Catalogue) -> str:
    if source.source_kind == "list":
        return SIGN + source.location
    if source.source_kind == "parquet" and (rows := read_rows(run_dir, source)):
        return source.location + COLUMN_SIGN + rows[0].member.rpartition("[")[0]
    return source.location


def columns_taken(found: Sequence[FoundSource]) -> list[str]:
    """A line for each column of Parquet files that the images come from."""
    count = Counter(source.column for source, _ in found if source.column is not None)
    return [f"images are the column {column!r} of {number} Parquet files" for column, number in count.items()]


def match_sources(
    run_dir: Location, run: manifests.Run, found: Sequence[FoundSource], *, add_new_files: bool
) -> MatchedSources:
    """Tell a run's sources from new ones. Raises RunMismatchError, naming files, for one of the run's that has changed."""
    families: dict[str, list[manifests.Catalogue]] = {}
    for catalogue in sorted(run.sources, key=lambda catalogue: catalogue.extends is not None):
        families.setdefault(catalogue.extends or catalogue.source, []).append(catalogue)
    names = {catalogue.source for catalogue in run.sources}
    known, new, left_out = [], [], []
    for (source, content), name in zip(found, _matching(run_dir, run, families, found), strict=True):
        if name is None:
            new.append(NewSource(replace(source, name=take_name(source.name, names)), content, extends=None))
            continue
        of_run, added = _compared(run_dir, families[name], source, content)
        known += of_run
        if added and add_new_files:
            rest = replace(content, rows=added, size_bytes=sum(row.size_bytes for row in added), problems=())
            new.append(NewSource(replace(source, name=take_name(name, names)), rest, extends=name))
        elif added:
            left_out.append(f"{source.location}: {len(added)} new files are not in the run: {_few(row.key for row in added)}")
    _refuse_nested(run, new)
    return MatchedSources(known=tuple(known), new=tuple(new), left_out=tuple(left_out))


def add_sources(run_dir: Location, recorded: Sequence[manifests.Catalogue], matched: MatchedSources) -> None:
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


def _matching(run_dir: Location, run: manifests.Run, families: Families, found: Sequence[FoundSource]) -> list[str | None]:
    """The name of the run's source that each of these is, None for a new one; each name once, the surest first.

    That is one of the same images in its place; one of the same images elsewhere; one in its place; and, where its place is
    empty, one of its name with some of its images, or a folder with all of them and others.
    """
    names: list[str | None] = [None] * len(found)
    digests = [rows_sha256(content.rows) for _, content in found]

    @cache
    def is_gone(name: str) -> bool:
        return bool(_is_gone(families[name][0].location))

    def in_its_place(i: int, name: str) -> bool:
        return families[name][0].location == str(found[i][0].location)

    def the_same(i: int, name: str) -> bool:
        return families[name][0].rows_sha256 == digests[i]

    def moved_and_changed(i: int, name: str) -> bool:
        there = {row.key: row for row in found[i][1].rows}
        same = [_same(row, there.get(row.key)) for part in families[name] for row in read_rows(run_dir, part)]
        return is_gone(name) and (all(same) if found[i][0].name != name else any(same))

    def same_bytes(i: int, name: str) -> bool:
        return _same_bytes(run_dir, run, families[name][0], *found[i])

    for tests in ((in_its_place, the_same), (the_same, same_bytes), (in_its_place,), (moved_and_changed, same_bytes)):
        for i, (source, _) in enumerate(found):
            free = [name for name, family in families.items() if name not in names and family[0].source_kind == source.kind]
            names[i] = names[i] or next((name for name in free if all(test(i, name) for test in tests)), None)
    return names


def _is_gone(location: str) -> bool:
    """Whether nothing is where a source was."""
    refused: list[str] = []
    return not find_urls([location], refused) if is_url(location) else not Path(location).exists()


def _same_bytes(
    run_dir: Location, run: manifests.Run, catalogue: manifests.Catalogue, source: Source, content: SourceContent
) -> bool:
    """Whether three images that the run has labelled are still the same, byte for byte: names and sizes alone may be those of
    other pictures, such as another video's frames."""
    there = {row.key: row for row in content.rows}
    rows = read_rows(run_dir, catalogue)
    parts = manifests.part_names(catalogue.source, len(rows), run.part_size)
    for index in sorted({0, len(rows) // 2, len(rows) - 1}) if rows else ():
        part = parts[index // run.part_size]
        if part in manifests.committed_parts(run_dir, IMAGES) and (row := there.get(rows[index].key)):
            recorded = manifests.load_part(run_dir, IMAGES, part).images[index % run.part_size].content_sha256
            (image,) = read_images(source, [row])
            if recorded not in (None, hashlib.sha256(image).hexdigest()):
                return False
    return True


def _refuse_nested(run: manifests.Run, new: Sequence[NewSource]) -> None:
    """Raises RunMismatchError for a new folder inside one of the run's, or around one: its images would be labelled twice."""
    recorded_folders = (source for source in run.sources if source.source_kind == "folder")
    folders = {absolute(location_of(source.location)): source for source in recorded_folders}
    for source, _, extends in new:
        place = absolute(source.location)
        for other, recorded in folders.items():
            if extends is None and source.kind == "folder" and (other in parents(place) or place in parents(other)):
                where = "inside" if other in parents(place) else "around"
                raise RunMismatchError(
                    f"{source.location} is {where} {recorded.location}, which is the run's source {recorded.source}: images "
                    "would be labelled twice; name that folder, with --add-new-files if it has new ones"
                )


def _compared(
    run_dir: Location, family: Sequence[manifests.Catalogue], source: Source, content: SourceContent
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
    if added and not KINDS[source.kind].can_grow:
        what.append(f"{len(added)} are new ({_few(row.key for row in added)})")
    if what:
        raise RunMismatchError(
            f"source {family[0].source}, {source.location}: of the images that the run was made with, or in this "
            f"{source.kind}, {', '.join(what)}; restore them, or label what is there now into a new run"
        )
    return known, added


def _same(row: CatalogueRow, other: CatalogueRow | None) -> bool:
    return other is not None and (row.member, row.offset, row.size_bytes) == (other.member, other.offset, other.size_bytes)


def read_rows(run_dir: Location, catalogue: manifests.Catalogue) -> list[CatalogueRow]:
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


def _problems_across(
    run_dir: Location, recorded: Sequence[manifests.Catalogue], matched: MatchedSources
) -> dict[str, list[manifests.Problem]]:
    """Images of new sources whose key an earlier source has too, by the new source's name."""
    there = {source.name: rows for source, rows in matched.known}
    contents: list[FoundSource] = []
    for catalogue in recorded:
        rows = there.get(catalogue.source) or tuple(read_rows(run_dir, catalogue))
        source = Source(name=catalogue.source, kind=catalogue.source_kind, location=location_of(catalogue.location))
        contents.append((source, SourceContent(rows=rows, size_bytes=0, problems=())))
    contents += [(new.source, new.content) for new in matched.new]
    problems: dict[str, list[manifests.Problem]] = defaultdict(list)
    for problem in cross_source_problems(contents):
        problems[problem.where.partition(":")[0]].append(problem)
    return problems


def _few(keys: Iterable[str]) -> str:
    names = list(keys)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
