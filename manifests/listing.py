"""Which images are where: one record for each image and column, read as it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Literal, get_args

from manifests.agreement import Agreements, ImageAgreement
from manifests.errors import RefusedError
from manifests.facts import column_facts
from manifests.location import Location
from manifests.run import (
    ColumnListing,
    PartId,
    Run,
    list_column,
    load_failure,
    load_part,
    load_run,
    manifest_path,
    parts,
)
from manifests.schema import Reason
from manifests.verify import keys_of

ListedStatus = Literal["labelled", "rejected", "not_drawn", "failed", "pending", "unreadable"]
STATUSES: tuple[ListedStatus, ...] = get_args(ListedStatus)
_UNKNOWN = ImageAgreement()


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """How an image stands in a column: `image` is its place in the part, `kind` and `message` say why it has no labels.

    `failed`: the last attempt at its part failed; `pending`: none has been made. `unreadable`: the part's record cannot be read
    or trusted; it stands once for all of them, with an empty key. The last three are how far the teacher agrees with the one
    that it agrees with least (any two of them in the column `images`), None where that is not known: see `manifests.agreement`.
    """

    column: str
    source: str
    part: str
    image: int
    key: str
    status: ListedStatus
    kind: str | None = None
    message: str | None = None
    abs_rel: float | None = None
    correlation: float | None = None
    edge_f1: float | None = None


def list_images(
    run_dir: Location,
    *,
    columns: Collection[str] = (),
    sources: Collection[str] = (),
    statuses: Collection[str] = (),
    kinds: Collection[str] = (),
    keys: Collection[str] = (),
    abs_rel_above: float | None = None,
) -> Iterator[ListedImage]:
    """The images of a run, column by column, in each in the order of its sources; of any of these, or of all.

    keys: patterns as a shell has them (`*`, `?`, `[a-z]`). abs_rel_above: only images of which a larger AbsRel is known.

    An unreadable part is listed too. Where rejected images alone are wanted, only the parts that have some are read, and none
    for failed and pending ones.

    Raises RefusedError for a column or source that the run does not have, and where the table of a source whose keys are asked
    for is damaged; else as `load_run` does.
    """
    run = load_run(run_dir)
    _refuse_unknown(run_dir, "column", columns, [column.name for column in run.columns])
    _refuse_unknown(run_dir, "source", sources, [source.source for source in run.sources])
    of_sources = [part for part in parts(run) if not sources or part.source in sources]
    wanted = [column.name for column in run.columns if not columns or column.name in columns]

    def matches(image: ListedImage) -> bool:
        named = not keys or any(fnmatchcase(image.key, pattern) for pattern in keys)
        apart = abs_rel_above is None or (image.abs_rel is not None and image.abs_rel > abs_rel_above)
        return (not statuses or image.status in statuses) and (not kinds or image.kind in kinds) and named and apart

    catalogues = {source.source: source for source in run.sources}
    keys_of_source = cache(lambda source: list(map(str, keys_of(run_dir, catalogues[source]).to_pylist())))
    agreements = Agreements(run_dir, run)
    for column in wanted:
        for image in _of_column(run_dir, run, column, of_sources, set(statuses), keys_of_source, agreements):
            if image.status == "unreadable" or matches(image):
                yield image


def _of_column(
    run_dir: Location,
    run: Run,
    column: str,
    every: Sequence[PartId],
    statuses: set[str],
    keys_of_source: Callable[[str], Sequence[str]],
    agreements: Agreements,
) -> Iterator[ListedImage]:
    listing = list_column(run_dir, column, with_states=True)
    reads = not statuses or bool(statuses - {"failed", "pending"})
    has_rejected = _parts_with_rejected(run_dir, column, listing) if statuses == {"rejected"} else None
    for part in every:
        if part.name in listing.manifests:
            if reads and (has_rejected is None or part.name in has_rejected):
                yield from _committed(
                    run_dir, column, part, {} if statuses == {"rejected"} else agreements.of(column, part.name)
                )
            continue
        failed = part.name in listing.failures
        if not statuses or ("failed" if failed else "pending") in statuses:
            first = part.number * run.part_size
            yield from _unfinished(run_dir, column, part, keys_of_source(part.source)[first : first + part.images], failed)


def _parts_with_rejected(run_dir: Location, column: str, listing: ColumnListing) -> set[str]:
    """And those that cannot be read."""
    facts = column_facts(run_dir, column, listing)
    return {part for part, images in zip(facts.parts, facts.all("rejected"), strict=True) if images} | set(facts.unread)


def _committed(run_dir: Location, column: str, part: PartId, agreement: Mapping[int, ImageAgreement]) -> Iterator[ListedImage]:
    try:
        images = load_part(run_dir, column, part.name).images
    except (OSError, ValueError) as error:
        where = manifest_path(run_dir, column, part.name)
        yield _listed(column, part, 0, "", "unreadable", Reason(kind="unreadable_record", message=f"{where}: {error}"))
        return
    for number, image in enumerate(images):
        yield _listed(column, part, number, image.key, image.status, image.problem, agreement.get(number, _UNKNOWN))


def _unfinished(run_dir: Location, column: str, part: PartId, keys: Sequence[str], failed: bool) -> Iterator[ListedImage]:
    try:
        problem = load_failure(run_dir, column, part.name).problem if failed else None
    except (OSError, ValueError) as error:
        problem = Reason(kind="unreadable_record", message=str(error))
    for number, key in enumerate(keys):
        yield _listed(column, part, number, key, "failed" if failed else "pending", problem)


def _listed(
    column: str,
    part: PartId,
    image: int,
    key: str,
    status: ListedStatus,
    problem: Reason | None,
    agreement: ImageAgreement = _UNKNOWN,
) -> ListedImage:
    return ListedImage(
        column=column,
        source=part.source,
        part=part.name,
        image=image,
        key=key,
        status=status,
        kind=problem and problem.kind,
        message=problem and problem.message,
        **agreement._asdict(),
    )


def _refuse_unknown(run_dir: Location, what: str, given: Collection[str], known: Sequence[str]) -> None:
    if unknown := [name for name in given if name not in known]:
        raise RefusedError(f"{run_dir}: has no {what} {', '.join(map(repr, unknown))}; it has {', '.join(known) or 'none'}")
