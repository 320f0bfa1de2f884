"""What `pipeline.export` can be told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipeline.config import at_least, folder_problems, url_problems

Format = Literal["webdataset", "folder"]
Views = Literal["whole", "patches", "both"]
LabelFiles = Literal["codes", "npy", "cm", "mm"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A run's labels as files that other trainers read."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write into; made where missing, continued where it is of this command."""
    format: Format
    """webdataset: a tar for each part of the run. folder: pictures, depth maps and lists of them, as the trainers of Depth
    Anything v2 and Marigold read them."""
    columns: tuple[str, ...] = ()
    """Teachers; all that the run has where none is named. An image is exported where all of them have labelled it."""
    views: Views = "whole"
    """Labels of whole views, of close-ups, or both."""
    labels: LabelFiles = "codes"
    """codes: 16-bit PNG of what is stored, value = offset + scale * (code - 1), without loss. npy: float32, NaN where there is
    no label. cm, mm: 16-bit PNG of metric depth in centimetres or millimetres. 0 is no label in a PNG."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes that write parts; one for each core of this machine unless given."""
    dry_run: bool = False
    """Only say how much it would be."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        found = url_problems(self) + at_least(self, {"workers": 1}) + folder_problems("-o", self.output)
        lower = [name.lower() for name in self.columns]
        if len(set(lower)) < len(lower):
            found.append(f"--columns {' '.join(self.columns)}: expected names that differ in lower case too")
        return found
