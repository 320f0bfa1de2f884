"""How far the teachers of a run agree, as `python -m pipeline.agreement` has found it out: reading it, and whether it counts.

`agreement/<first>/<second>/<part>.parquet` has a row for each view of a part that both teachers have labelled; `_overview.json`
beside these has the distribution over the run, and the images in which both are farthest apart. All of it is disposable: made
from the labels alone, and tied by digest to the manifests of both columns, so that nothing is taken from it that is not of what
the run holds now. What is missing, cut, of another format or of other labels is as if it were not there.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from manifests.facts import column_facts
from manifests.location import Location
from manifests.place import place_of
from manifests.run import IMAGES, Run, images_of_parts, list_column

if TYPE_CHECKING:
    import pyarrow as pa

AGREEMENT, OVERVIEW = "agreement", "_overview.json"
MEASURES = ("abs_rel", "correlation", "edge_f1")
QUANTILES = (0, 0.01, 0.1, 0.5, 0.9, 0.99, 1)
FORMAT = "distill-any-depth agreement 1"
MOST_NAMED = 1000
"""Images that an overview names, those farthest apart."""
_LIMIT_BYTES, _LIMIT_ROWS = 1 << 26, 1 << 22


class ImageAgreement(NamedTuple):
    """Of an image's whole view; of the worst one, where it has several, or several other teachers. None where there is nothing
    to compare. docs/format.md says what the numbers are."""

    abs_rel: float | None = None
    correlation: float | None = None
    edge_f1: float | None = None

    def worst(self, other: ImageAgreement) -> ImageAgreement:
        """Of both, for each measure."""
        pick = (max, min, min)
        pairs = zip(pick, self, other, strict=True)
        return ImageAgreement(
            *(of(known, default=None) for of, *both in pairs for known in [[v for v in both if v is not None]])
        )


class FarApart(NamedTuple):
    """An image in which two teachers are far apart: the `image`-th of its part."""

    source: str
    part: str
    image: int
    key: str
    abs_rel: float


@dataclass(frozen=True, kw_only=True)
class PairAgreement:
    """Of two teachers over a run's images. `quantiles`: by measure, the values at QUANTILES over the images that have one.

    up_to_date: whether it is of all that both columns hold now; where it is not, there are neither numbers nor names.
    """

    first: str
    second: str
    up_to_date: bool
    images: int = 0
    quantiles: Mapping[str, Sequence[float]]
    farthest_apart: Sequence[FarApart] = ()


def pairs_of(run: Run) -> list[tuple[str, str]]:
    """The teachers' columns two by two, each in the order of the run."""
    return list(combinations([column.name for column in run.columns if column.name != IMAGES], 2))


def table_name(first: str, second: str, part: str) -> str:
    """Where the table of a part is, relative to the run."""
    return f"{AGREEMENT}/{first}/{second}/{part}.parquet"


def overview_name(first: str, second: str) -> str:
    """Where the overview of two columns is, relative to the run. Who reads a folder of tables skips a name like this one."""
    return f"{AGREEMENT}/{first}/{second}/{OVERVIEW}"


def compared_pairs(run_dir: Location, run: Run) -> list[tuple[str, str]]:
    """Of these pairs, those of which there is anything, to be trusted or not."""
    place = place_of(run_dir)
    try:
        firsts = {entry.name for entry in place.entries(AGREEMENT)}
        return [(first, second) for first, second in pairs_of(run) if first in firsts and _has(run_dir, first, second)]
    except OSError:
        return []


def _has(run_dir: Location, first: str, second: str) -> bool:
    return any(entry.name == second for entry in place_of(run_dir).entries(f"{AGREEMENT}/{first}"))


def agreement_folders(run_dir: Location) -> list[str]:
    """The folders of all tables, relative to the run, and those above them. Raises OSError where they cannot be listed."""
    found = [AGREEMENT]
    for _ in range(2):
        found += [
            f"{f}/{e.name}"
            for f in found
            for e in place_of(run_dir).entries(f)
            if e.kind == "folder" and f"{f}/{e.name}" not in found
        ]
    return found


def part_digests(run_dir: Location, run: Run, column: str) -> dict[str, str]:
    """What decides the content of each committed part that can be trusted, by its name. Raises OSError."""
    facts, catalogued = column_facts(run_dir, column, list_column(run_dir, column, with_states=True)), images_of_parts(run)
    told = zip(facts.parts, facts.all("images"), facts.all("digest"), strict=True)
    return {part: digest for part, images, digest in told if catalogued.get(part) == images}


def digest_of_parts(parts: Iterable[tuple[str, str]]) -> str:
    """Of a column: of the names and digests of its parts, in the order of their names."""
    return hashlib.sha256("\n".join(f"{part} {digest}" for part, digest in parts).encode()).hexdigest()


def read_table(run_dir: Location, first: str, second: str, part: str, digests: tuple[str, str]) -> pa.Table | None:
    """The views of a part, where its table is of labels with these digests (see `docs/format.md`); else None."""
    try:
        import pyarrow.parquet as parquet  # here, so that a summary does not wait for it

        raw = place_of(run_dir).read(table_name(first, second, part), limit_bytes=_LIMIT_BYTES)
        with parquet.ParquetFile(io.BytesIO(raw)) as file:
            expected = table_schema(first, second, part, digests)
            alike = file.schema_arrow.equals(expected, check_metadata=True) and file.metadata.num_rows <= _LIMIT_ROWS
            return file.read() if alike else None
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, ImportError, MemoryError):  # pyarrow raises all of these
        return None


def table_schema(first: str, second: str, part: str, digests: tuple[str, str]) -> pa.Schema:
    """A table's columns, and in the metadata what it is of."""
    import pyarrow as pa

    told = {"format": FORMAT, "first": first, "second": second, "part": part, "digests": list(digests)}
    types = {"source": pa.string(), "key": pa.string(), "image": pa.int32(), "context": pa.int32(), "patch": pa.int32()}
    types |= dict.fromkeys((*MEASURES, "shared"), pa.float32())
    return pa.schema(types.items(), metadata={b"agreement": json.dumps(told).encode()})


def images_in(table: pa.Table) -> dict[int, ImageAgreement]:
    """What a table says of each image's whole view, by the place of the image in the part."""
    found: dict[int, ImageAgreement] = {}
    for image, patch, *values in zip(*(table[name].to_pylist() for name in ("image", "patch", *MEASURES)), strict=True):
        if patch is None and image is not None:
            own = ImageAgreement(*(value if value is not None and math.isfinite(value) else None for value in values))
            found[image] = found.get(image, ImageAgreement()).worst(own)
    return found


class Agreements:
    """What is known of the images of a run, read part by part as it is asked for."""

    def __init__(self, run_dir: Location, run: Run) -> None:
        self._run_dir, self._run = run_dir, run
        self._digests = cache(lambda column: part_digests(run_dir, run, column))

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of columns that have been compared, if only in part."""
        return compared_pairs(self._run_dir, self._run)

    def of(self, column: str, part: str) -> Mapping[int, ImageAgreement]:
        """Of the images of a part, by their place in it: with the teacher that is farthest from this one; of any two teachers
        for the column `images`."""
        found: dict[int, ImageAgreement] = {}
        for pair in self.pairs:
            if column in (IMAGES, *pair):
                for image, agreement in self.of_pair(*pair, part).items():
                    found[image] = found.get(image, ImageAgreement()).worst(agreement)
        return found

    def of_pair(self, first: str, second: str, part: str) -> Mapping[int, ImageAgreement]:
        """Of two teachers, in the order of the run."""
        digests = self._digests(first).get(part), self._digests(second).get(part)
        if digests[0] is None or digests[1] is None:
            return {}
        table = read_table(self._run_dir, first, second, part, (digests[0], digests[1]))
        return {} if table is None else images_in(table)


# --- the overview ---------------------------------------------------------------------------------------------------


def overview(
    first: str,
    second: str,
    digests: tuple[str, str],
    images: int,
    quantiles: Mapping[str, Sequence[float]],
    worst: Sequence[FarApart],
) -> bytes:
    """The file of an overview. digests: `digest_of_parts` of both columns."""
    document = {"format": FORMAT, "first": first, "second": second, "digests": list(digests), "images": images}
    document |= {"quantiles": quantiles, "farthest_apart": worst}
    return json.dumps(document, indent=1).encode()


def read_overview(run_dir: Location, first: str, second: str, digests: tuple[str, str]) -> PairAgreement:
    """Of two columns. digests: `digest_of_parts` of what they hold now."""
    nothing = PairAgreement(first=first, second=second, up_to_date=False, quantiles={})
    try:
        told = json.loads(place_of(run_dir).read(overview_name(first, second), limit_bytes=_LIMIT_BYTES))
        if [told[name] for name in ("format", "first", "second", "digests")] != [FORMAT, first, second, list(digests)]:
            return nothing
        quantiles = {
            name: [_finite(value) for value in told["quantiles"][name]] for name in MEASURES if name in told["quantiles"]
        }
        if any(len(values) != len(QUANTILES) for values in quantiles.values()):
            return nothing
        worst = tuple(
            FarApart(str(source), str(part), int(image), str(key), _finite(abs_rel))
            for source, part, image, key, abs_rel in told["farthest_apart"]
        )
        return PairAgreement(
            first=first, second=second, up_to_date=True, images=int(told["images"]), quantiles=quantiles, farthest_apart=worst
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, MemoryError):
        return nothing


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError("no finite number")
    return number
