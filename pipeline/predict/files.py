"""What is asked for and what is there: photographs, the names of their results, and results that are finished or in the way.

The results of a photograph are named after it, its suffix included: `a/b.jpg` gives `a/b.jpg.png`, `a/b.jpg.npy` and
`a/b.jpg.color.jpg` below the output, so that no two photographs of a folder share a name. The PNG is written first and records
what decided it, and the digests of the files that belong to it: they are ours, and nothing else is. What is not ours is never
replaced unless it is asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path, PurePosixPath

import numpy as np
from braceexpand import braceexpand
from jaxtyping import Float32

import manifests
from manifests.errors import DistillError, RefusedError
from stages.depth_space import DepthSpace
from stages.prediction import encode_color_jpeg, encode_depth_png, png_text, require_map
from stages.sources.catalogue import SourceImages, expand_sources, read_source, split_column
from stages.sources.kinds import kind_of
from stages.sources.lists import SIGN
from stages.sources.parquet import files_of
from stages.sources.photographs import IMAGE_SUFFIXES, stated_pixels
from stages.sources.source import CatalogueRow, Source, SourceContent
from stages.threads import ahead

MAP, VALUES, COLOR = ".png", ".npy", ".color.jpg"
"""Added to a photograph's name."""
_VOUCHED = {VALUES: "npy_sha256", COLOR: "color_sha256"}
"""Where the PNG's text has the digest of each file that was written with it."""
_SHOWN = 10
_PIXELS_PER_BYTE = 4
_PNG_END = b"IEND\xaeB`\x82"


class PredictError(RefusedError):
    """The command cannot be run as given; the message says why and what to do."""


class ForeignResultError(DistillError):
    """A file that this command did not make stands where a result belongs."""


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A picture to predict, its name for people, and the path of its results, to which their suffixes are added."""

    path: Path
    """Its file, or the tar or Parquet file that it lies in."""
    name: str
    target: Path
    member: CatalogueRow | None = None
    """Where in its tar or Parquet file."""
    images: SourceImages | None = None
    """All that lie there, if it lies in one; `index` is its own number among them."""
    index: int = 0

    def read(self) -> bytes:
        """Its file's bytes. Raises OSError where they cannot be read, or are not those that were found."""
        return self.path.read_bytes() if self.images is None else self.images.read(self.index)

    def pixels(self) -> int:
        """About how many it has, 0 where its header does not say; of one inside a file a guess from its size, and not few."""
        return stated_pixels(self.path) if self.member is None else self.member.size_bytes * _PIXELS_PER_BYTE

    def result(self, suffix: str) -> Path:
        """The path of one of its results."""
        return self.target.with_name(self.target.name + suffix)


def find_photographs(inputs: Sequence[Path], output: Path) -> tuple[list[Photograph], list[manifests.Problem]]:
    """Photographs given by name and found in folders and tars, each once, and what could not be taken there.

    What is in a folder keeps its path below it, what is in a tar its path below the tar's name, and a photograph given by name
    is at the top of the output. inputs: globs and brace patterns too. Raises PredictError where an input is not there, nothing
    was found, two photographs would have one result, or the output is among the inputs.
    """
    found: list[Photograph] = []
    problems: list[manifests.Problem] = []
    inputs, sources = _expanded(inputs)
    found += [Photograph(path=given, name=str(given), target=output / given.name) for given in inputs if kind_of(given) is None]
    for source in sources:
        content = read_source(source)
        found += _photographs(source, content, output, problems)
        for problem in content.problems:
            where = problem.where if problem.kind == "no_images" else f"{source.location}/{problem.where}"
            problems.append(dataclasses.replace(problem, where=where))
    if not found:
        looked_for = f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}, in any case, in these and all folders below"
        raise PredictError(_listed(f"no photograph found; {looked_for}", [f"{p.where}: {p.message}" for p in problems]))
    _refuse_output_among_inputs(inputs, found)
    return _unique(found), problems


def _photographs(
    source: Source, content: SourceContent, output: Path, problems: list[manifests.Problem]
) -> Iterator[Photograph]:
    """Those of a source, each with the path of its results; one whose name leads elsewhere is a problem."""
    assert isinstance(source.location, Path)
    given, images = source.location, SourceImages(source, content.rows)
    for index, row in enumerate(content.rows):
        name = f"{given}/{row.key}"
        if source.kind == "folder":
            yield Photograph(path=given / row.member, name=name, target=output / row.member)
        elif source.kind == "list":
            yield Photograph(path=given.parent / row.member, name=str(given.parent / row.member), target=output / row.key)
        elif stays_below(inside := row.member if source.kind == "tar" else row.key):
            target = output / inside if inside.startswith(f"{given.stem}/") else output / given.stem / inside
            yield Photograph(path=given, name=name, target=target, member=row, images=images, index=index)
        else:
            message = f"its name in the {source.kind} leads out of a folder, so no result is named after it"
            problems.append(manifests.Problem(kind="unsafe_name", where=name, message=message))


def _expanded(inputs: Sequence[Path]) -> tuple[list[Path], list[Source]]:
    """What there is of photographs, and of what holds more. Raises PredictError that lists those of which nothing is."""
    found, sources, missing = [], [], []
    for given in inputs:
        text, column = split_column(str(given))
        if column or text.startswith(SIGN):
            sources += expand_sources([str(given)])
            continue
        try:
            patterns = [text] if given.exists() else list(braceexpand(text))
        except ValueError:  # a brace without its partner stands for itself
            patterns = [text]
        for pattern in patterns:
            matches = [pattern] if Path(pattern).exists() else sorted(glob(pattern, recursive=True))
            found += map(Path, matches)
            missing += [] if matches else [pattern]
    if missing:
        raise PredictError(_listed("nothing there", missing))
    if urls := [str(source.location) for source in sources if not isinstance(source.location, Path)]:
        raise PredictError(_listed("photographs to predict are files on this machine, not URLs", urls))
    return found, [source for path in found if kind_of(path) for source in _sources(path)] + sources


def _sources(path: Path) -> list[Source]:
    """A path of some kind as sources: itself under its own name, or the Parquet files that it stands for."""
    kind = kind_of(path)
    if kind == "parquet" or (kind == "folder" and files_of(path)):
        return expand_sources([str(path)])
    return [Source(name=str(path), kind=str(kind), location=path)]


def stays_below(name: str) -> bool:
    """Whether a name from a tar, taken as a path, is one below whatever folder it is put into."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _refuse_output_among_inputs(inputs: Sequence[Path], photographs: Sequence[Photograph]) -> None:
    """Results beside photographs would be taken for photographs the next time."""
    folders = {given.resolve() for given in inputs if given.is_dir()}
    beside = {given.resolve().parent for given in inputs if kind_of(given) is None}
    for place in {photograph.target.parent.resolve() for photograph in photographs}:
        if place in beside or folders & {place, *place.parents}:
            raise PredictError(f"--output: {place} holds photographs to predict; results need a folder of their own")


def _unique(photographs: Sequence[Photograph]) -> list[Photograph]:
    by_target: dict[Path, Photograph] = {}
    refused = []
    for photograph in photographs:
        first = by_target.setdefault(photograph.target, photograph)
        if not (first.path.samefile(photograph.path) and first.member == photograph.member):
            refused.append(f"{photograph.target}{MAP}: {first.name} and {photograph.name}")
    if refused:
        raise PredictError(
            _listed("photographs would share a result; give the folder above them, or each its own --output", refused)
        )
    return list(by_target.values())


def unfinished(
    photographs: Sequence[Photograph], recipe: Mapping[str, str], wanted: Sequence[str], *, overwrite: bool, threads: int
) -> list[Photograph]:
    """The photographs that lack one of the `wanted` results.

    recipe: what decides a map, as its PNG records it. Raises PredictError, unless `overwrite`, where a result is there that
    another recipe, another photograph or somebody else made.
    """

    def look(photograph: Photograph) -> tuple[bool, list[str]]:
        return _look(photograph, recipe, wanted)

    left, in_the_way = [], []
    looked = ahead(look, photographs, threads=threads, depth=4 * threads)
    for photograph, (finished, problems) in zip(photographs, looked, strict=True):
        in_the_way += problems
        if problems or not finished:
            left.append(photograph)
    if in_the_way and not overwrite:
        raise PredictError(
            _listed("files are there that this command would not make; take another --output, or --overwrite", in_the_way)
        )
    return left


def _look(photograph: Photograph, recipe: Mapping[str, str], wanted: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether all that is wanted is there, and what stands in the way of making it."""
    recorded, problem = _recorded(photograph, recipe)
    if problem:
        return False, [f"{photograph.result(MAP)}: {problem}"]
    finished, foreign = recorded is not None and _is_whole(photograph.result(MAP)), []
    for suffix in (suffix for suffix in wanted if suffix != MAP):
        path = photograph.result(suffix)
        if not _there(path):
            finished = False
        elif recorded is None or _VOUCHED[suffix] not in recorded:
            foreign.append(_not_ours(path))
    return finished and not foreign, foreign


def _recorded(photograph: Photograph, recipe: Mapping[str, str]) -> tuple[dict[str, str] | None, str | None]:
    """What the PNG records, None where there is none; and what sets it apart from the one that is wanted."""
    path = photograph.result(MAP)
    if not _there(path):
        return None, None
    if not path.is_file():
        return None, "not made by this command: no plain file"
    recorded = png_text(path)
    if not recipe.keys() <= recorded.keys():
        return None, "not made by this command"
    differing = [
        f"{key} is {_short(key, recorded[key])}, now {_short(key, value)}"
        for key, value in recipe.items()
        if recorded[key] != value
    ]
    if differing:
        return recorded, "; ".join(differing)
    try:
        same = recorded.get("photograph_sha256") == hashlib.sha256(photograph.read()).hexdigest()
    except OSError:  # reported when it is predicted
        same = True
    return recorded, None if same else f"made from another photograph than {photograph.name}, or it has changed since"


def _short(key: str, value: str) -> str:
    return value[:12] if key.endswith("sha256") else value


def _there(path: Path) -> bool:
    """Anything of that name, a link to nothing included; a name that is too long is not there."""
    return os.path.lexists(path)


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-min(len(_PNG_END), path.stat().st_size), os.SEEK_END)
        return file.read() == _PNG_END


def _not_ours(path: Path) -> str:
    return f"{path}: not made by this command; no map beside it records it"


def write_results(
    photograph: Photograph,
    values: Float32[np.ndarray, "h w"],
    space: DepthSpace,
    *,
    about: Mapping[str, str],
    wanted: Sequence[str],
    overwrite: bool = False,
    marks_invalid: bool = False,
) -> None:
    """Writes the results anew: those that are wanted, and those that an earlier command left.

    about: what the PNG records beside the map and the digests of the other files. marks_invalid: NaN is no value, and no
    failure. Raises MapRejectedError, or, without `overwrite`, ForeignResultError where something else has appeared under a
    result's name, and then nothing has changed; or OSError. After that, what there is belongs to the PNG that is there, and the
    rest is missing.
    """
    require_map(values, marks_invalid=marks_invalid)
    # What decides a PNG was compared at the start: here it only has to be one of this command.
    recorded = png_text(photograph.result(MAP)) if photograph.result(MAP).is_file() else {}
    ours = {MAP} if recorded.keys() >= about.keys() else set()
    ours |= {suffix for suffix, key in _VOUCHED.items() if _is(photograph.result(suffix), recorded.get(key))}
    for path in (photograph.result(suffix) for suffix in wanted if suffix not in ours):
        if _there(path) and not overwrite:
            raise ForeignResultError(_not_ours(path))
    contents = {
        suffix: encode(values, space)
        for suffix, encode in ((VALUES, _npy), (COLOR, encode_color_jpeg))
        if suffix in wanted or suffix in ours or (overwrite and _there(photograph.result(suffix)))
    }
    digests = {_VOUCHED[suffix]: hashlib.sha256(content).hexdigest() for suffix, content in contents.items()}
    png = encode_depth_png(values, space, {**about, **digests}, marks_invalid=marks_invalid)
    for suffix in contents:  # no file may stay whose digest is about to be forgotten
        photograph.result(suffix).unlink(missing_ok=True)
    manifests.write_replacing(photograph.result(MAP), png)
    for suffix, content in contents.items():
        manifests.write_replacing(photograph.result(suffix), content)


def _is(path: Path, sha256: str | None) -> bool:
    """Whether a file has this digest."""
    return sha256 is not None and path.is_file() and manifests.sha256_file(path) == sha256


def _npy(values: Float32[np.ndarray, "h w"], space: DepthSpace) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def _listed(what: str, items: Sequence[str]) -> str:
    more = [f"and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return "\n  - ".join([f"{what}:", *items[:_SHOWN], *more])
