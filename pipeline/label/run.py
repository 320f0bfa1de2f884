"""Opening a run: catalogue the sources, fix what decides the labels, and find what is left to do.

Opening a run again with other sources, seed, plan or weights is refused, naming each difference, because its columns would then
hold labels of two kinds. A teacher of which nothing is committed may be another one: its record in `run.json` is replaced, by
who holds the run alone. Nothing else of `run.json` ever changes.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

import manifests
from manifests.place import PlaceError
from pipeline.config import resolved
from pipeline.label.queue import WORKER_TROUBLE
from stages.labelling.units import IMAGES, Unit
from stages.models import TeacherSpec, checkpoint_folder, checkpoint_sha256, resolve
from stages.models.checkpoints import require_safetensors
from stages.sources.catalogue import (
    CatalogueRow,
    Source,
    SourceContent,
    cross_source_problems,
    expand_sources,
    read_source,
)
from stages.views import ViewPlan

if TYPE_CHECKING:
    from pipeline.label.command import LabelConfig


_READERS = 8  # sources catalogued at a time: over a network the time goes into waiting
_TEACHER_SETTINGS = ("primary", "assistant")
_DECIDING = ("loader", "depth_space", "dtype", "input_px", "compile", "steps", "ensemble")


class RunMismatchError(ValueError):
    """The folder holds a run that this command would not have made."""


@dataclass(frozen=True, kw_only=True)
class WantedRun:
    """What a command wants its run to be; `catalogues` are each source's JSON and table."""

    run_dir: Path
    record: manifests.RunRecord
    plan: ViewPlan
    teachers: tuple[TeacherSpec, ...]
    sources: tuple[tuple[Source, SourceContent], ...]
    catalogues: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run whose record and catalogues are on disk."""

    run_dir: Path
    record: manifests.RunRecord
    record_sha256: str
    """Of run.json's bytes."""
    corrections: tuple[str, ...] = ()
    """What was replaced in run.json, in words."""
    plan: ViewPlan
    teachers: tuple[TeacherSpec, ...]
    sources: tuple[tuple[Source, SourceContent], ...]

    @property
    def source_problems(self) -> tuple[manifests.Problem, ...]:
        """Everything that is wrong with the sources, each alone and with each other."""
        return tuple(problem for _, content in self.sources for problem in content.problems)


def read_sources(patterns: tuple[str, ...]) -> tuple[tuple[Source, SourceContent], ...]:
    """Catalogue every source. Raises SourceNotFoundError for a pattern without one."""
    sources = expand_sources(patterns)
    with ThreadPoolExecutor(_READERS) as pool:
        contents = list(zip(sources, pool.map(read_source, sources), strict=True))
    shared = defaultdict[str, list[manifests.Problem]](list)
    for problem in cross_source_problems(contents):
        shared[problem.where.partition(":")[0]].append(problem)
    return tuple((source, replace(content, problems=(*content.problems, *shared[source.name]))) for source, content in contents)


def open_run(config: LabelConfig, sources: tuple[tuple[Source, SourceContent], ...]) -> OpenRun:
    """Create the run, or make sure that the one in the folder is the one that `config` describes.

    Raises RunMismatchError for one that is not, naming every field that differs with both values.
    """
    return enter_run(describe_run(config, sources), alone=False)


def describe_run(config: LabelConfig, sources: tuple[tuple[Source, SourceContent], ...]) -> WantedRun:
    """What the run is to be; reads checkpoints, and nothing of the run. Raises OSError or ValueError for a bad checkpoint."""
    catalogues = tuple(_catalogue_files(source, content) for source, content in sources)
    teachers = tuple(_located(resolve(teacher)) for teacher in config.teachers)
    record = _record(config, teachers, sources, [hashlib.sha256(described).hexdigest() for described, _ in catalogues])
    return WantedRun(
        run_dir=config.run, record=record, plan=config.plan, teachers=teachers, sources=sources, catalogues=catalogues
    )


def enter_run(wanted: WantedRun, *, alone: bool) -> OpenRun:
    """Create the run, or make sure that the one in the folder is the wanted one.

    alone: nobody else has the run, so that teachers of which nothing is committed may be replaced. Raises RunMismatchError for
    a run that is, or stays, another one.
    """
    place, corrections = manifests.place_of(wanted.run_dir), []
    if not place.exists("run.json"):
        for (source, _), (described, table) in zip(wanted.sources, wanted.catalogues, strict=True):
            _create_or_match(place, manifests.table_path(Path(), source.name).as_posix(), table)
            _create_or_match(place, manifests.catalogue_path(Path(), source.name).as_posix(), described)
        place.create("run.json", manifests.to_json(wanted.record))  # or another driver was first
    found = manifests.load_run(wanted.run_dir)
    if differences := _differences(found, wanted.record):
        if not (alone and _may_be_corrected(wanted.run_dir, found, wanted.record, differences)):
            raise _mismatch(wanted.run_dir, differences)
        corrections = _correct(wanted.run_dir, found, wanted.record, differences)
    content = place.read("run.json", limit_bytes=manifests.MAX_RECORD_BYTES)
    return OpenRun(
        run_dir=wanted.run_dir,
        record=manifests.parse_run(content, place.shown("run.json")),
        record_sha256=hashlib.sha256(content).hexdigest(),
        corrections=tuple(corrections),
        plan=wanted.plan,
        teachers=wanted.teachers,
        sources=wanted.sources,
    )


def needs_correction(wanted: WantedRun) -> bool:
    """Whether the run in the folder becomes the wanted one by replacing teachers of which nothing is committed."""
    if not manifests.place_of(wanted.run_dir).exists("run.json"):
        return False
    found = manifests.load_run(wanted.run_dir)
    differences = _differences(found, wanted.record)
    return bool(differences) and _may_be_corrected(wanted.run_dir, found, wanted.record, differences)


def refuse_replaced(run: OpenRun) -> None:
    """Raises RunMismatchError where another command has corrected the run since it was opened."""
    place = manifests.place_of(run.run_dir)
    found = place.read("run.json", limit_bytes=manifests.MAX_RECORD_BYTES)
    if hashlib.sha256(found).hexdigest() != run.record_sha256:
        raise RunMismatchError(
            f"{place.shown('run.json')}: another command has replaced a teacher just now; run again to see which"
        )


def _located(spec: TeacherSpec) -> TeacherSpec:
    """A folder by its absolute path: a worker elsewhere has another working directory."""
    return replace(spec, checkpoint=str(Path(spec.checkpoint).absolute())) if Path(spec.checkpoint).is_dir() else spec


def _create_or_match(place: manifests.Place, name: str, content: bytes) -> None:
    """Raises RunMismatchError where the file is there with other content: of a command that never came to its run.json."""
    if place.create(name, content):
        return
    with place.open(name) as stream:
        found = hashlib.file_digest(stream, "sha256").digest()
    if found != hashlib.sha256(content).digest():
        raise RunMismatchError(
            f"{place.shown(name)}: describes a source of other content, and there is no run.json: left by a command that was "
            f"stopped, or by one that starts just now; remove {place.shown('catalog')} if no other command is at work, and run "
            "again"
        )


def _catalogue_files(source: Source, content: SourceContent) -> tuple[bytes, bytes]:
    """The catalogue's JSON and its table."""
    columns = {name: [getattr(row, name) for row in content.rows] for name in ("key", "member", "offset", "size_bytes")}
    schema = pa.schema([("key", pa.string()), ("member", pa.string()), ("offset", pa.int64()), ("size_bytes", pa.int64())])
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    table = buffer.getvalue()
    catalogue = manifests.Catalogue(
        source=source.name,
        location=str(source.location),
        source_kind=source.kind,
        size_bytes=content.size_bytes,
        images=len(content.rows),
        table_sha256=hashlib.sha256(table).hexdigest(),
        problems=content.problems,
    )
    return manifests.to_json(catalogue), table


def _record(
    config: LabelConfig,
    teachers: tuple[TeacherSpec, ...],
    sources: tuple[tuple[Source, SourceContent], ...],
    catalogue_sha256: list[str],
) -> manifests.RunRecord:
    content = {"format_version": 1, "seed": config.seed, "part_size": config.part_size, "rows_sha256": _rows_sha256(sources)}
    content |= {f"plan.{name}": value for name, value in asdict(config.plan).items()}
    columns = [manifests.ColumnRecord(name=IMAGES, depth_space=None, fingerprint=content)]
    for spec in teachers:
        folder = checkpoint_folder(spec.checkpoint, spec.revision)
        if not any(folder.rglob("*.safetensors")):
            require_safetensors(folder)  # refused here, before anything is made with it
        own = {name: getattr(spec, name) for name in _DECIDING}
        own |= {"weights_sha256": checkpoint_sha256(folder)}
        columns.append(manifests.ColumnRecord(name=spec.name, depth_space=spec.depth_space, fingerprint=content | own))
    return manifests.RunRecord(
        seed=config.seed,
        part_size=config.part_size,
        plan=asdict(config.plan),
        sources=tuple(
            manifests.SourceRecord(
                name=source.name,
                kind=source.kind,
                location=str(source.location),
                images=len(content.rows),
                catalogue_sha256=digest,
            )
            for (source, content), digest in zip(sources, catalogue_sha256, strict=True)
        ),
        columns=tuple(columns),
        configuration=resolved(config),
    )


def _rows_sha256(sources: tuple[tuple[Source, SourceContent], ...]) -> str:
    """A digest of every image's source, key, place and size; moving a tar elsewhere leaves it as it is."""
    digest = hashlib.sha256()
    for source, content in sources:
        for row in content.rows:
            line = f"{source.name}\0{row.key}\0{row.member}\0{row.offset}\0{row.size_bytes}\n"
            digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _differences(found: manifests.RunRecord, wanted: manifests.RunRecord) -> dict[str, list[str]]:
    """By column, in what words the records differ; those of sources under ''."""
    differences: dict[str, list[str]] = {}
    if _named(found.sources) != _named(wanted.sources):
        differences[""] = [f"the run has {_named(found.sources)}, this command {_named(wanted.sources)}"]
    stored = {column.name: column.fingerprint for column in found.columns}
    for column in wanted.columns:
        if column.name not in stored:
            differences[column.name] = [f"the run was made without it (it has {', '.join(stored)})"]
        elif unequal := manifests.fingerprint_differences(found=stored[column.name], expected=column.fingerprint):
            differences[column.name] = unequal
    return differences


def _mismatch(run_dir: Path, differences: dict[str, list[str]]) -> RunMismatchError:
    named = {f"column {column}" if column else "sources": words for column, words in differences.items()}
    lines = "\n".join(f"  - {name}: {difference}" for name, words in named.items() for difference in words)
    return RunMismatchError(f"{run_dir} holds a run of other content; use a new folder or the old settings\n{lines}")


def _renamed(found: manifests.RunRecord, wanted: manifests.RunRecord) -> list[str]:
    """Columns that give way to columns of a new name; none where there is no new name."""
    names = [column.name for column in wanted.columns]
    stored = [column.name for column in found.columns]
    return [name for name in stored if name not in names] if set(names) - set(stored) else []


def _may_be_corrected(
    run_dir: Path, found: manifests.RunRecord, wanted: manifests.RunRecord, differences: dict[str, list[str]]
) -> bool:
    """Whether all that differs are teachers of which nothing is committed, under their old and new names."""
    touched = {*differences, *_renamed(found, wanted)}
    return not touched & {"", IMAGES} and not any(manifests.committed_parts(run_dir, column) for column in touched)


def _correct(
    run_dir: Path, found: manifests.RunRecord, wanted: manifests.RunRecord, differences: dict[str, list[str]]
) -> list[str]:
    """Replace the teachers in run.json; what failed with the former ones is forgotten. Returns what was done, in words."""
    renamed = _renamed(found, wanted)
    kept = {column.name: column for column in found.columns if column.name not in (*differences, *renamed)}
    for column in (*differences, *renamed):
        _forget(run_dir, column)
    teachers = {name: wanted.configuration[name] for name in _TEACHER_SETTINGS}
    record = replace(
        found,
        columns=tuple(kept.get(column.name, column) for column in wanted.columns),
        configuration={**found.configuration, **teachers},
    )
    manifests.place_of(run_dir).replace("run.json", manifests.to_json(record))
    words = [f"column {column}: {'; '.join(unequal)}" for column, unequal in differences.items()]
    words += [f"column {column}: no longer there" for column in renamed]
    return [f"{run_dir / 'run.json'}: corrected, nothing of it was committed: {line}" for line in words]


def _forget(run_dir: Path, column: str) -> None:
    """Remove what attempts at a column without committed parts have left, and the folder where nothing else is in it.

    No link is followed, and what no command of ours writes stays; `verify` names both.
    """
    place, folder = manifests.place_of(run_dir), manifests.column_dir(Path(), column).as_posix()
    try:
        entries = place.entries(folder)
    except PlaceError:
        return
    ours = [
        entry.name
        for entry in entries
        if (entry.name.endswith(".zarr") and entry.kind == "folder")
        or (entry.name.endswith(".failure.json") and entry.kind in ("file", "link"))
    ]
    for name in ours:
        place.remove(f"{folder}/{name}")
    if len(ours) == len(entries):
        place.remove(folder)


def _named(sources: tuple[manifests.SourceRecord, ...]) -> str:
    return ", ".join(f"{source.name} ({source.images} images)" for source in sources)


def units_left(run: OpenRun) -> list[Unit]:
    """Every unit without a manifest, `images` first, in catalogue order; reads one directory per column."""
    content = {source.name: (source, rows.rows) for source, rows in run.sources}
    parts = manifests.parts(run.record)
    units = []
    for column in run.record.columns:
        done = manifests.committed_parts(run.run_dir, column.name)
        for part in parts:
            if part.name not in done:
                source, rows = content[part.source]
                first = part.number * run.record.part_size
                units.append(_unit(run, column, part.name, source, rows[first : first + part.images]))
    return units


def drop_second_chances(run_dir: Path) -> None:
    """Take parts out of a run whose images were rejected for what happened to their worker, so that they are made again.

    A part of `images` takes the teachers' parts along, which were made without those images.
    """
    columns = [column.name for column in manifests.load_run(run_dir).columns]
    chosen: dict[tuple[str, str], str] = {}
    for column in columns:
        for part in manifests.committed_parts(run_dir, column):
            images = manifests.load_part(run_dir, column, part).images
            kinds = {image.problem.kind for image in images if image.problem} & WORKER_TROUBLE
            for name in (columns if column == IMAGES else [column]) if kinds else ():
                chosen[name, part] = f"a second chance after {', '.join(sorted(kinds))}"
    manifests.drop_parts(run_dir, chosen)


def _unit(run: OpenRun, column: manifests.ColumnRecord, part: str, source: Source, rows: tuple[CatalogueRow, ...]) -> Unit:
    return Unit(
        run_dir=run.run_dir.resolve(),
        run_sha256=run.record_sha256,
        column=column.name,
        part=part,
        attempt="",
        source=source,
        rows=rows,
        plan=run.plan,
        seed=run.record.seed,
        fingerprint=column.fingerprint,
    )
