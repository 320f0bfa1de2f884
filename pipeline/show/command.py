"""`python -m pipeline.show RUN KEY`: a photograph's labels as one picture, to look at.

It has what the teachers saw, each teacher's label of the whole view, its close-ups stitched, where it has no label, and how far
the teachers are from each other once scale and shift are fitted. It is drawn in the terminal where that is kitty, Ghostty,
iTerm2 or WezTerm, and else, or with -o, written as a PNG file.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

import manifests
from manifests.checker import printable
from manifests.errors import RefusedError
from pipeline.exits import DONE, REFUSED, say
from pipeline.show.config import ShowConfig, read_command
from pipeline.show.picture import Opinion, label_picture
from pipeline.show.terminal import drawn, protocol_of
from stages.label_store import AmbiguousKeyError, NoLabelsError, OpenRun, PhotographPictures, open_run, refuse_other_files

_PROGRAM = "pipeline.show"


def main(argv: Sequence[str] | None = None) -> int:
    return run(read_command(argv))


def run(config: ShowConfig) -> int:
    """Shows the photograph, or says why not; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a key may hold what the terminal cannot show
    if problems := config.problems():
        print(*(printable(f"{_PROGRAM}: {problem}") for problem in problems), sep="\n", file=sys.stderr)
        return REFUSED
    try:
        show(config)
    except (Exception, KeyboardInterrupt) as error:
        return say(_PROGRAM, error, "Name it with --source." if isinstance(error, AmbiguousKeyError) else "")
    return DONE


def show(config: ShowConfig) -> None:
    """Draws the picture, or writes it, and says of which labels it is.

    Raises what `open_run` and its columns raise, NoLabelsError where no teacher has a label of this photograph, RefusedError
    for a context that it has not, and OSError where the file cannot be written.
    """
    opened = open_run(config.run)
    number = opened.images.number((config.source, config.key) if config.source is not None else config.key)
    seen = opened.pictures.numbered(number)
    if not 0 <= config.context < len(seen.pictures):
        raise RefusedError(f"--context is {config.context}, expected one from 0 to {len(seen.pictures) - 1}")
    opinions, without = _opinions(opened, number, config)
    png = _png(label_picture(seen.pictures[config.context], opinions, [*_lines(seen, config.context), *without]))
    protocol = protocol_of(os.environ) if config.output is None and sys.stdout.isatty() else None
    if protocol:
        print(drawn(png, protocol, os.get_terminal_size(sys.stdout.fileno()).columns), end="")
    else:
        path = config.output or Path(safe_name(seen.image.source, seen.image.key, config.context))
        path.parent.mkdir(parents=True, exist_ok=True)
        manifests.write_replacing(path, png)
    shown = "" if protocol else f"{path}: "
    print(printable(shown + "; ".join([seen.image.key, *(opinion.teacher for opinion in opinions), *without])))


def _opinions(run: OpenRun, number: int, config: ShowConfig) -> tuple[list[Opinion], list[str]]:
    """What each teacher says of the photograph, and in words why some say nothing. Raises NoLabelsError where none does."""
    opinions, without = [], []
    for column in [run[name] for name in config.columns or run]:
        try:
            labels = column.numbered(number).contexts[config.context]
        except NoLabelsError as error:
            without.append(str(error))
            continue
        if labels is None:
            without.append(f"{column.name} has no label of context {config.context}: it was not wanted")
        else:
            opinions.append(Opinion(column.name, column.depth_space, labels))
    refuse_other_files(number, [run.pictures, *(run[opinion.teacher] for opinion in opinions)])
    if not opinions:
        raise NoLabelsError("\n".join(without) or f"{config.run}: the run has no teacher's column yet; label first")
    return opinions, [printable(line) for line in without]


def _lines(seen: PhotographPictures, context: int) -> list[str]:
    """What stands over the picture."""
    (height, width), box, picture = seen.source_size, seen.boxes[context], seen.pictures[context]
    region = f"{box.width:.0f} x {box.height:.0f} px at ({box.left:.0f}, {box.top:.0f}) of {width} x {height}"
    which = f", context {context} of 0 to {len(seen.pictures) - 1}" * (len(seen.pictures) > 1)
    what = f"{region}, labelled at {picture.shape[1]} x {picture.shape[0]}"
    return [printable(seen.image.key), f"source {seen.image.source}{which}: {what}"]


def safe_name(source: str, key: str, context: int) -> str:
    """A file name for a photograph's picture, of letters, digits, - and _: whatever the key is, it leads nowhere else."""
    words = re.sub(r"[^A-Za-z0-9_-]+", "-", key).strip("-")[:80] or "photograph"
    digest = hashlib.sha256(f"{source}\0{key}\0{context}".encode(errors="backslashreplace")).hexdigest()
    return f"{words}-{digest[:8]}.png"


def _png(rgb: UInt8[np.ndarray, "h w 3"]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(rgb).save(content, "PNG")
    return content.getvalue()
