"""Which version of this software runs."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

_DISTRIBUTION = "distill-any-depth-pipeline"


def software_version() -> str:
    """Name, version and the folder of the code, as `--version` prints it."""
    try:
        version = importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        version = "of a checkout that is not installed"
    return f"{_DISTRIBUTION} {version} ({Path(__file__).parents[1]})"
