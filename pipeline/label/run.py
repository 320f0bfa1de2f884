"""Opening a run: fix what decides the labels, add what is new to it, and find what is left to do.

A run is three kinds of records, each created once: run.json (plan, seed, part size), one for each source, one for each column.
A command adds sources and columns that the run does not have; one that it has, but that the command would make otherwise, is
refused, naming each difference, because a column would then hold labels of two kinds. The record of a column of which nothing
is committed may be replaced, by who holds the run alone. Nothing else ever changes.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import manifests
from manifests.location import Location, absolute
from manifests.place import PlaceError
from manifests.run import IMAGES, RUN_RECORD
from pipeline.config import resolved
from pipeline.label.config import LabelConfig
from pipeline.label.queue import WORKER_TROUBLE, TeacherUnusableError
from pipeline.label.shard import Shard
from pipeline.label.sources import FoundSource, RunMismatchError, add_sources, match_sources
from stages.distillation.draw import Draw
from stages.label_store.format import LABEL_BITS
from stages.labelling.teacher import TeacherSpec
from stages.labelling.unit import Unit
from stages.models import checkpoint_sha256
from stages.models.checkpoints import require_safetensors
from stages.models.custom import load as load_custom
from stages.models.located import located, with_known
from stages.models.resolve import resolve
from stages.models.spec import LATEST
from stages.sources.photographs import available_resamplers
from stages.sources.source import CatalogueRow, Source
from stages.views import ViewPlan

_BITS_OF_OLD, _RESAMPLER_OF_OLD = 16, "pillow"  # of columns that do not say it
_DECIDING = ("loader", "depth_space", "dtype", "input_px", "compile", "steps", "ensemble")


@dataclass(frozen=True, kw_only=True)
class WantedRun:
    """What a command wants of its run: `columns` are `images` and those of its teachers, in their order."""

    run_dir: Location
    record: manifests.RunRecord
    plan: ViewPlan
    columns: tuple[manifests.ColumnRecord, ...]
    teachers: tuple[TeacherSpec, ...]
    draw: Draw | None = None
    """That of the training that the teachers label for, if it is for one."""
    shard: Shard | None = None
    """The part of it that is to be labelled; None is all."""


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run whose records are on disk, and what a command does in it: its columns, and its sources with their images."""

    run_dir: Location
    run: manifests.Run
    plan: ViewPlan
    columns: tuple[manifests.ColumnRecord, ...]
    teachers: tuple[TeacherSpec, ...]
    sources: tuple[tuple[Source, tuple[CatalogueRow, ...]], ...]
    records: Mapping[str, str]
    """The sha256 of the records of the run and of the columns, by their path in the run."""
    drawn: Mapping[str, Mapping[str, tuple[int, ...]]] | None = None
    """The rows to be labelled, by column and part; None is all of them."""
    with_patches: bool = True
    shard: Shard | None = None
    """What this command labels of it; None is all."""
    corrections: tuple[str, ...] = ()
    """Which columns' records were replaced, in words."""
    left_out: tuple[str, ...] = ()
    """Which files of the sources are not part of the run, in words."""

    @property
    def parts(self) -> list[manifests.PartId]:
        """The parts of the sources that the command has named, in its shard."""
        names = {source.name for source, _ in self.sources}
        parts = [part for part in manifests.parts(self.run) if part.source in names]
        return parts if self.shard is None else [part for part in parts if self.shard.has(part)]

    @property
    def source_problems(self) -> tuple[manifests.Problem, ...]:
        """Everything that was found wrong with these sources, each alone and with each other, when they were added."""
        names = {source.name for source, _ in self.sources}
        return tuple(problem for source in self.run.sources if source.source in names for problem in source.problems)


def open_run(config: LabelConfig, found: Sequence[FoundSource]) -> OpenRun:
    """Create the run, or make sure that the one in the folder is the one that `config` describes.

    Raises RunMismatchError for one that is not, naming every field that differs with both values.
    """
    return enter_run(describe_run(config, found), found, add_new_files=config.add_new_files)


def describe_run(config: LabelConfig, found: Sequence[FoundSource]) -> WantedRun:
    """What the run is to be, with these sources; reads checkpoints, and of the run the catalogues at most.

    Raises OSError or ValueError for a bad checkpoint, RunMismatchError for sources that do not fit the run.
    """
    recorded = _recorded_columns(config.run)
    examined = [_examined(_as_recorded(teacher, recorded.get(teacher.name))) for teacher in config.chosen]
    content = {"format_version": manifests.FORMAT_VERSION, "seed": config.seed, "part_size": config.part_size}
    content |= {f"plan.{name}": value for name, value in asdict(config.plan).items()}
    resampler = config.resampler or _recorded_resampler(recorded) or available_resamplers()[0]
    content |= {"resampler": resampler} if resampler != _RESAMPLER_OF_OLD else {}
    images = manifests.ColumnRecord(name=IMAGES, depth_space=None, fingerprint=content, configuration={})
    record = manifests.RunRecord(
        seed=config.seed,
        part_size=config.part_size,
        plan=asdict(config.plan),
        configuration=resolved(replace(config, shard=None)),  # of all who share it
    )
    draw = config.draw
    if draw:
        content = content | draw.fingerprint(_images_with(config, found))
    return WantedRun(
        run_dir=config.run,
        record=record,
        plan=config.plan,
        columns=(images, *(_column(*teacher, content) for teacher in examined)),
        teachers=tuple(spec for spec, _ in examined),
        draw=draw,
        shard=config.share,
    )


def _images_with(config: LabelConfig, found: Sequence[FoundSource]) -> int:
    """How many images the run has once these sources are part of it."""
    if not manifests.place_of(config.run).exists(RUN_RECORD):
        return sum(len(content.rows) for _, content in found)
    run = manifests.load_run(config.run)
    new = match_sources(config.run, run, found, add_new_files=config.add_new_files).new
    return sum(source.images for source in run.sources) + sum(len(content.rows) for _, content, _ in new)


def _examined(spec: TeacherSpec) -> tuple[TeacherSpec, str]:
    """The spec with everything stated, and the digest of its weights. A user's own function is called for both."""
    if spec.is_custom:
        try:
            model = load_custom(resolve(spec), "cpu")
        except Exception as error:  # whatever another package raises
            *_, last = traceback.extract_tb(error.__traceback__)
            where = f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
            raise TeacherUnusableError(f"teacher {spec.name} cannot be loaded: {where}") from error
        return replace(spec, depth_space=model.spec.depth_space, licence=model.spec.licence), model.weights_sha256
    spec, folder = located(_absolute(resolve(spec)))
    spec = resolve(spec, folder)
    if not any(folder.rglob("*.safetensors")):
        require_safetensors(folder)  # refused here, before anything is made with it
    return spec, checkpoint_sha256(folder)


def _column(
    spec: TeacherSpec, weights_sha256: str, content: Mapping[str, str | int | float | bool | None]
) -> manifests.ColumnRecord:
    own = {name: getattr(spec, name) for name in _DECIDING} | {"weights_sha256": weights_sha256}
    own |= {"channels_last": True} if spec.channels_last else {}
    own |= {"label_bits": spec.label_bits} if spec.label_bits != _BITS_OF_OLD else {}
    return manifests.ColumnRecord(
        name=spec.name, depth_space=spec.depth_space, fingerprint={**content, **own}, configuration=asdict(spec)
    )


def enter_run(wanted: WantedRun, found: Sequence[FoundSource], *, alone: bool = False, add_new_files: bool = False) -> OpenRun:
    """Create the run, or make sure that the one in the folder is the wanted one; add sources and columns that are new to it.

    alone: nobody else has the run, so that columns of which nothing is committed may be replaced. Raises RunMismatchError for
    a run that is, or stays, another one; nothing of it is changed then.
    """
    run_dir, place = wanted.run_dir, manifests.place_of(wanted.run_dir)
    if not place.exists(RUN_RECORD):
        place.refuse_unsafe_creates()
        place.create(RUN_RECORD, manifests.to_json(wanted.record))  # or another driver was first
    run = manifests.load_run(run_dir)
    differing = _differing_columns(run, wanted)
    if refused := _refused(run, wanted, [] if alone else list(differing)):
        lines = "\n".join(f"  - {difference}" for difference in refused)
        raise RunMismatchError(f"{run_dir} holds a run of other content; use a new folder or the old settings\n{lines}")
    matched = match_sources(run_dir, run, found, add_new_files=add_new_files)
    add_sources(run_dir, run.sources, matched)
    recorded = {column.name for column in run.columns}
    for column in wanted.columns:
        name = manifests.column_record_path(Path(), column.name).as_posix()
        if column.name in differing:
            _forget(run_dir, column.name)
            place.replace(name, manifests.to_json(column))
        elif column.name not in recorded:
            place.create(name, manifests.to_json(column))
    run = manifests.load_run(run_dir)
    if refused := _refused(run, wanted, list(_differing_columns(run, wanted))):
        raise RunMismatchError(f"{run_dir}: another command has just added a column of this name; {'; '.join(refused)}")
    return OpenRun(
        run_dir=run_dir,
        run=run,
        plan=wanted.plan,
        columns=wanted.columns,
        teachers=wanted.teachers,
        sources=(*matched.known, *((source, content.rows) for source, content, _ in matched.new)),
        records=_digests(run_dir, wanted.columns),
        drawn=_drawn(run, wanted),
        with_patches=wanted.draw is None or wanted.draw.patches,
        shard=wanted.shard,
        corrections=tuple(
            f"{manifests.column_record_path(run_dir, name)}: corrected, nothing of it was committed: {'; '.join(words)}"
            for name, words in differing.items()
        ),
        left_out=matched.left_out,
    )


def _drawn(run: manifests.Run, wanted: WantedRun) -> dict[str, dict[str, tuple[int, ...]]] | None:
    """The rows that the training draws, by column and part. Raises RunMismatchError where the images are not those that the
    columns' records count."""
    if wanted.draw is None:
        return None
    sizes = {part.name: part.images for part in manifests.parts(run)}
    expected = wanted.draw.fingerprint(sum(sizes.values()))
    for column in wanted.columns[1:]:
        found = {name: column.fingerprint.get(name) for name in expected}
        if differences := manifests.fingerprint_differences(found, expected):
            raise RunMismatchError(f"{wanted.run_dir}: another command has just added images: {'; '.join(differences)}")
    return wanted.draw.rows(sizes, wanted.plan.contexts_per_image)


def needs_correction(wanted: WantedRun) -> bool:
    """Whether the run in the folder becomes the wanted one by replacing columns of which nothing is committed."""
    if not manifests.place_of(wanted.run_dir).exists(RUN_RECORD):
        return False
    run = manifests.load_run(wanted.run_dir)
    return bool(_differing_columns(run, wanted)) and not _refused(run, wanted, [])


def refuse_replaced(run: OpenRun) -> None:
    """Raises RunMismatchError where another command has corrected a column since the run was opened."""
    now = _digests(run.run_dir, run.columns)
    for name, sha256 in run.records.items():
        if now[name] != sha256:
            raise RunMismatchError(f"{run.run_dir / name}: another command has replaced it just now; run again to see how")


def _digests(run_dir: Location, columns: Sequence[manifests.ColumnRecord]) -> dict[str, str]:
    place = manifests.place_of(run_dir)
    names = [RUN_RECORD, *(manifests.column_record_path(Path(), column.name).as_posix() for column in columns)]
    contents = (place.read(name, limit_bytes=manifests.MAX_RECORD_BYTES) for name in names)
    return {name: hashlib.sha256(content).hexdigest() for name, content in zip(names, contents, strict=True)}


def _absolute(spec: TeacherSpec) -> TeacherSpec:
    """Folders by their absolute paths: a worker elsewhere has another working directory."""
    folders = {name: path for name in ("checkpoint", "base") if (path := getattr(spec, name)) and Path(path).is_dir()}
    return replace(spec, **{name: str(Path(path).absolute()) for name, path in folders.items()})


def _recorded_columns(run_dir: Location) -> dict[str, manifests.ColumnRecord]:
    """The columns that the run has, by name."""
    if not manifests.place_of(run_dir).exists(RUN_RECORD):
        return {}
    return {column.name: column for column in manifests.load_run(run_dir).columns}


def _recorded_resampler(columns: Mapping[str, manifests.ColumnRecord]) -> str | None:
    """What has cut the run's pictures so far."""
    return str(columns[IMAGES].fingerprint.get("resampler", _RESAMPLER_OF_OLD)) if IMAGES in columns else None


def _as_recorded(spec: TeacherSpec, column: manifests.ColumnRecord | None) -> TeacherSpec:
    """A teacher with what the run's column was made with, where the command leaves it open: the bits of its labels, and its
    newest commits, which are looked up once."""
    if spec.label_bits is None:
        bits = LABEL_BITS if column is None else column.fingerprint.get("label_bits", _BITS_OF_OLD)
        spec = replace(spec, label_bits=int(bits or 0))
    wanted, recorded = with_known(spec), column.configuration if column else {}
    pinned = {"revision": ("checkpoint", wanted.revision), "base_revision": ("base", wanted.base_revision)}
    return replace(
        spec,
        **{
            name: str(recorded[name])
            for name, (whose, revision) in pinned.items()
            if revision == LATEST and recorded.get(name) and recorded.get(whose) == getattr(wanted, whose)
        },
    )


def _differing_columns(run: manifests.Run, wanted: WantedRun) -> dict[str, list[str]]:
    """In what words the columns differ that the run has too, by name."""
    recorded = {column.name: column for column in run.columns}
    return {
        column.name: unequal
        for column in wanted.columns
        if (found := recorded.get(column.name))
        and (unequal := manifests.fingerprint_differences(found=found.fingerprint, expected=column.fingerprint))
    }


def _refused(run: manifests.Run, wanted: WantedRun, columns: Sequence[str]) -> list[str]:
    """Why the run in the folder cannot be the wanted one: its settings, and columns that differ and are of these names, or of
    which something is committed."""
    if settings := manifests.fingerprint_differences(found=_settings(run), expected=_settings(wanted.record)):
        return settings  # each column would only repeat them
    return [
        f"column {name}: {'; '.join(words)}"
        for name, words in _differing_columns(run, wanted).items()
        if name in columns or name == IMAGES or manifests.committed_parts(wanted.run_dir, name)
    ]


def _settings(run: manifests.Run | manifests.RunRecord) -> dict[str, object]:
    """What never changes in a run, one field each."""
    return {"seed": run.seed, "part_size": run.part_size, **{f"plan.{name}": value for name, value in run.plan.items()}}


def _forget(run_dir: Location, column: str) -> None:
    """Remove what attempts at a column without committed parts have left.

    No link is followed, and what no command of ours writes stays; `verify` names both.
    """
    place, folder = manifests.place_of(run_dir), manifests.column_dir(Path(), column).as_posix()
    try:
        entries = place.entries(folder)
    except PlaceError:
        return
    for entry in entries:
        attempt = entry.name.endswith(".zarr") and entry.kind == "folder"
        failure = entry.name.endswith(".failure.json") and entry.kind in ("file", "link")
        if attempt or failure:
            place.remove(f"{folder}/{entry.name}")


def units_left(run: OpenRun) -> list[Unit]:
    """Every unit without a manifest, `images` first, in the order of the sources; reads one directory per column."""
    content = {source.name: (source, rows) for source, rows in run.sources}
    parts = run.parts
    units = []
    for column in run.columns:
        done = manifests.committed_parts(run.run_dir, column.name)
        for part in parts:
            if part.name not in done:
                source, rows = content[part.source]
                first = part.number * run.run.part_size
                units.append(_unit(run, column, part, source, rows[first : first + part.images]))
    return units


def drop_second_chances(run_dir: Location, shard: Shard | None = None) -> None:
    """Take parts out of a run, or of a shard, whose images were rejected for what happened to their worker, so that they are
    made again.

    A part of `images` takes the teachers' parts along, which were made without those images.
    """
    run = manifests.load_run(run_dir)
    columns = [column.name for column in run.columns]
    own = {part.name for part in manifests.parts(run) if shard is None or shard.has(part)}
    chosen: dict[tuple[str, str], str] = {}
    for column in columns:
        for part in own & manifests.committed_parts(run_dir, column):
            images = manifests.load_part(run_dir, column, part).images
            kinds = {image.problem.kind for image in images if image.problem} & WORKER_TROUBLE
            for name in (columns if column == IMAGES else [column]) if kinds else ():
                chosen[name, part] = f"a second chance after {', '.join(sorted(kinds))}"
    manifests.drop_parts(run_dir, chosen)


def _unit(
    run: OpenRun, column: manifests.ColumnRecord, part: manifests.PartId, source: Source, rows: tuple[CatalogueRow, ...]
) -> Unit:
    place = manifests.column_record_path(Path(), column.name).as_posix()
    drawn = None if column.name == IMAGES or run.drawn is None else run.drawn[column.name][part.name]
    return Unit(
        run_dir=absolute(run.run_dir),
        records={name: run.records[name] for name in (RUN_RECORD, place)},
        column=column.name,
        part=part.name,
        attempt="",
        source=source,
        rows=rows,
        plan=run.plan,
        seed=run.run.seed,
        fingerprint=manifests.part_fingerprint(column, part.rows_sha256),
        drawn=drawn,
        with_patches=run.with_patches,
    )
