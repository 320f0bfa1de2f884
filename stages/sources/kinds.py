"""The kinds of sources; a new one is a file beside these and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.sources.folders import FOLDER
from stages.sources.lists import LIST
from stages.sources.parquet import PARQUET
from stages.sources.source import SourceKind
from stages.sources.tars import TAR

KINDS: Mapping[str, SourceKind] = {
    "folder": FOLDER,
    "list": LIST,
    "parquet": PARQUET,
    "tar": TAR,
}
"""By the name that catalogues record."""


def kind_of(path: Path) -> str | None:
    """The kind of source that a path is; None for no source."""
    return next((name for name, kind in KINDS.items() if kind.recognises(path)), None)
