"""`python -m pipeline.browse RUN -o gallery/`: a run's labels as a gallery, to look through in a browser.

A folder of plain files that works from a disk and from any static web server, and asks no network for anything. It shows a
sample of the run: images drawn at random, those in which the teachers are farthest apart where `pipeline.agreement` has
compared them, and rejected ones, with the reason and with the picture where it opens.
"""

from __future__ import annotations

import errno
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

import manifests
from manifests.checker import printable
from manifests.errors import RefusedError
from pipeline.browse.entries import Entry, Original, make_entry
from pipeline.browse.page import GalleryContent, gallery_page, script, style_sheet
from pipeline.browse.sample import draw_sample
from pipeline.config import answer_version, at_least, folder_problems, url_problems
from pipeline.exits import DONE, REFUSED, say
from pipeline.label.sources import read_rows
from pipeline.tally import Tally
from stages.label_store import OpenRun, open_run
from stages.sources.catalogue import read_images, read_source
from stages.sources.kinds import KINDS
from stages.sources.photographs import PictureRejectedError, decode_upright
from stages.sources.source import CatalogueRow, Source

_PROGRAM = "pipeline.browse"
_PAGE, _STYLE, _SCRIPT, _IMAGES = "index.html", "gallery.css", "gallery.js", "images"
_START_OF_JPEG, _END_OF_JPEG = b"\xff\xd8\xff", b"\xff\xd9"
_OF_AN_IMAGE = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class BrowseConfig:
    """A run's labels as a gallery."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write the gallery into; one that is there is replaced."""
    images: int = 200
    """Images to draw at random."""
    worst: int = 50
    """Images in which two teachers are farthest apart, once `python -m pipeline.agreement` has compared them."""
    rejected: int = 50
    """Rejected images."""
    seed: int = 0
    """Of what is drawn at random."""
    originals: bool = True
    """Look for rejected photographs where they were labelled. Without, nothing but the run is read."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        counts = at_least(self, {"images": 0, "worst": 0, "rejected": 0, "seed": 0})
        return url_problems(self) + counts + folder_problems("-o", self.output)


def main(argv: Sequence[str] | None = None) -> int:
    answer_version(sys.argv[1:] if argv is None else argv)
    config = tyro.cli(BrowseConfig, prog=f"python -m {_PROGRAM}", description=__doc__, args=argv)
    if problems := config.problems():
        print(*(printable(f"{_PROGRAM}: {problem}") for problem in problems), sep="\n", file=sys.stderr)
        return REFUSED
    try:
        browse(config)
    except (Exception, KeyboardInterrupt) as error:
        return say(_PROGRAM, error)
    return DONE


def browse(config: BrowseConfig) -> None:
    """Writes the gallery, its page last, and says where it is.

    Raises as `load_run` and `open_run` do, RefusedError for a run without images and for a folder that holds something else
    than a gallery, and OSError where it cannot be written.
    """
    _refuse_other_folder(config.output)
    summary, run = manifests.summarize(config.run), open_run(config.run)
    sample = draw_sample(config.run, images=config.images, worst=config.worst, rejected=config.rejected, seed=config.seed)
    if not sample.numbers:
        raise RefusedError(f"{config.run}: found no image to show, expected one: label photographs into the run first")
    original, entries = _originals(config.run, run) if config.originals else None, []
    with Tally("browse", len(sample.numbers), "images") as tally:
        for number in sample.numbers:
            entries.append(_written(config.output, run, number, original))
            tally.done()
    content = GalleryContent(run=config.run.resolve().name, shown=sample.words(config.seed), summary=summary, entries=entries)
    for name, text in ((_STYLE, style_sheet()), (_SCRIPT, script()), (_PAGE, gallery_page(content))):
        manifests.write_replacing(config.output / name, text.encode())
    _remove_former(config.output / _IMAGES, {entry.name for entry in entries})
    troubled = sum(bool(entry.trouble) for entry in entries)
    print(printable(f"{config.output / _PAGE}: {sample.words(config.seed)}"))
    if troubled:
        print(f"{troubled} images cannot be shown in full; their entries say why", file=sys.stderr)


def _refuse_other_folder(folder: Path) -> None:
    """Raises RefusedError where there is something and no gallery."""
    known = {_PAGE, _STYLE, _SCRIPT, _IMAGES}
    found = [path.name for path in folder.iterdir()] if folder.exists() else []
    if other := [name for name in found if name not in known and not name.startswith(".")]:
        raise RefusedError(f"-o {folder}: found {other[0]!r} in it, expected a gallery or nothing; give a new folder")


def _written(output: Path, run: OpenRun, number: int, original: Original | None) -> Entry:
    entry, files = make_entry(run, number, original)
    folder = output / _IMAGES / entry.name
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return entry


def _remove_former(images: Path, wanted: set[str]) -> None:
    """Removes the images of a former gallery, whose names are of no other thing."""
    for folder in images.iterdir():
        if _OF_AN_IMAGE.fullmatch(folder.name) and folder.name not in wanted and folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)


def _originals(place: Path, run: OpenRun) -> Original:
    """Opens photographs where they were labelled, whole or as far as they go."""
    sources = {
        source.source: Source(name=source.source, kind=source.source_kind, location=Path(source.location))
        for source in run.images.run.sources
        if source.source_kind in KINDS
    }
    catalogues = {source.source: source for source in run.images.run.sources}

    @cache
    def found_in(name: str) -> dict[str, CatalogueRow]:
        """By key. The rows of a Parquet file are those of the run's table, which knows the column."""
        of_run = sources[name].kind == "parquet"
        rows = read_rows(place, catalogues[name]) if of_run else read_source(sources[name]).rows
        return {row.key: row for row in rows}

    def original(source: str, key: str) -> Image.Image:
        if source not in sources or key not in found_in(source):
            raise FileNotFoundError(errno.ENOENT, "it is not where it was labelled")
        (content,) = read_images(sources[source], [found_in(source)[key]])
        try:
            return decode_upright(content)
        except PictureRejectedError:
            if not content.startswith(_START_OF_JPEG):
                raise
            return decode_upright(content + _END_OF_JPEG)  # one that is cut, as far as it goes

    return original
