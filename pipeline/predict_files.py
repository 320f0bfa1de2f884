"""What is asked for and what is there: photographs, the names of their results, and results that are finished or in the way.

The results of a photograph are named after it, its suffix included: `a/b.jpg` gives `a/b.jpg.png`, `a/b.jpg.npy` and
`a/b.jpg.color.jpg` below the output, so that no two photographs of a folder share a name. The PNG is written last and records
what decided it: where it stands whole, everything that was written with it does.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

import manifests
from stages.depth_space import DepthSpace
from stages.labelling.catalogue import Source, read_source
from stages.labelling.flow import ahead
from stages.labelling.pictures import IMAGE_SUFFIXES
from stages.prediction import encode_color_jpeg, encode_depth_png, png_text

MAP, VALUES, COLOR = ".png", ".npy", ".color.jpg"
"""Added to a photograph's name."""
_SHOWN = 10
_PNG_END = b"IEND\xaeB`\x82"


class PredictError(Exception):
    """The command cannot be run as given; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A file to predict, its name for people, and the path of its results, to which their suffixes are added."""

    path: Path
    name: str
    target: Path

    def result(self, suffix: str) -> Path:
        """The path of one of its results."""
        return self.target.with_name(self.target.name + suffix)


def find_photographs(inputs: Sequence[Path], output: Path) -> tuple[list[Photograph], list[manifests.Problem]]:
    """Photographs given by name and found in folders, each once, and what could not be taken there.

    What is in a folder keeps its path below it, a photograph given by name is at the top of the output. Raises PredictError
    where an input is not there, nothing was found, two photographs would have one result, or the output is among the inputs.
    """
    found: list[Photograph] = []
    problems: list[manifests.Problem] = []
    if missing := [path for path in inputs if not path.exists()]:
        raise PredictError(_listed("nothing there", [str(path) for path in missing]))
    for given in inputs:
        if not given.is_dir():
            found.append(Photograph(path=given, name=str(given), target=output / given.name))
            continue
        content = read_source(Source(name=str(given), kind="folder", location=given))
        for row in content.rows:
            found.append(Photograph(path=given / row.member, name=f"{given}/{row.key}", target=output / row.member))
        for problem in content.problems:
            where = problem.where if problem.kind == "no_images" else f"{given}/{problem.where}"
            problems.append(dataclasses.replace(problem, where=where))
    if not found:
        looked_for = f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}, in any case, in these and all folders below"
        raise PredictError(_listed(f"no photograph found; {looked_for}", [f"{p.where}: {p.message}" for p in problems]))
    _refuse_output_among_inputs(inputs, found)
    return _unique(found), problems


def _refuse_output_among_inputs(inputs: Sequence[Path], photographs: Sequence[Photograph]) -> None:
    """Results beside photographs would be taken for photographs the next time."""
    folders = {given.resolve() for given in inputs if given.is_dir()}
    beside = {given.resolve().parent for given in inputs if not given.is_dir()}
    for place in {photograph.target.parent.resolve() for photograph in photographs}:
        if place in beside or folders & {place, *place.parents}:
            raise PredictError(f"--output: {place} holds photographs to predict; results need a folder of their own")


def _unique(photographs: Sequence[Photograph]) -> list[Photograph]:
    by_target: dict[Path, Photograph] = {}
    refused = []
    for photograph in photographs:
        first = by_target.setdefault(photograph.target, photograph)
        if not first.path.samefile(photograph.path):
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

    def differences(photograph: Photograph) -> list[str] | None:
        return _differences(photograph, recipe)

    left, in_the_way = [], []
    for photograph, differing in zip(
        photographs, ahead(differences, photographs, threads=threads, depth=4 * threads), strict=True
    ):
        if differing:
            in_the_way.append(f"{photograph.result(MAP)}: {'; '.join(differing)}")
        if differing != [] or not all(os.path.exists(photograph.result(suffix)) for suffix in wanted):
            left.append(photograph)
    if in_the_way and not overwrite:
        raise PredictError(
            _listed("results are there that this command would not make; take another --output, or --overwrite", in_the_way)
        )
    return left


def _differences(photograph: Photograph, recipe: Mapping[str, str]) -> list[str] | None:
    """What sets a result apart from the one that is wanted; None where there is none, or a cut one."""
    path = photograph.result(MAP)
    if not os.path.exists(path) or not path.stat().st_size:  # unlike Path's, it raises nothing for a name too long
        return None
    recorded = png_text(path)
    if not recipe.keys() <= recorded.keys():
        return ["not written by this command"]
    with path.open("rb") as file:
        file.seek(-len(_PNG_END), 2)
        if file.read() != _PNG_END:
            return None
    if differing := [
        f"{key} is {recorded[key]:.12}, now {value:.12}" for key, value in recipe.items() if recorded[key] != value
    ]:
        return differing
    try:
        same = recorded.get("photograph_sha256") == manifests.sha256_file(photograph.path)
    except OSError:  # reported when it is predicted
        return None
    return [] if same else [f"made from another photograph than {photograph.name}, or it has changed since"]


def write_results(
    photograph: Photograph,
    values: Float32[np.ndarray, "h w"],
    space: DepthSpace,
    *,
    about: Mapping[str, str],
    wanted: Sequence[str],
) -> None:
    """Writes the results anew: those that are wanted, and those that an earlier command left.

    about: what the PNG records beside the map. Raises MapRejectedError, and then nothing has changed, or OSError.
    """
    content = encode_depth_png(values, space, about)
    photograph.result(MAP).unlink(missing_ok=True)  # it vouches for the others, so it goes first and comes last
    for suffix, encode in ((VALUES, _npy), (COLOR, encode_color_jpeg)):
        path = photograph.result(suffix)
        if suffix in wanted or path.exists():
            manifests.write_replacing(path, encode(values, space))
    manifests.write_replacing(photograph.result(MAP), content)


def _npy(values: Float32[np.ndarray, "h w"], space: DepthSpace) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def _listed(what: str, items: Sequence[str]) -> str:
    more = [f"and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return "\n  - ".join([f"{what}:", *items[:_SHOWN], *more])
