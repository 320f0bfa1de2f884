"""The files of the pages, as they are in the package."""

from __future__ import annotations

from importlib.resources import files as package_files

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.colors import to_hex

from stages.coloring import COLOR_MAP

TEMPLATES = Environment(
    loader=PackageLoader("pipeline", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
"""Everything that a template is given is escaped; a name that it asks for and was not given is an error."""


def packaged(name: str) -> str:
    """A file of the package `pipeline`, by its path in it."""
    return package_files("pipeline").joinpath(name).read_text(encoding="utf-8")


def page_style() -> str:
    """What all pages look like."""
    return f":root {{ --depth-colors: linear-gradient(90deg, {', '.join(_depth_colors())}); }}\n" + packaged("viewer/page.css")


def viewer_script() -> str:
    """What makes the large view, for a script of the page's own to follow."""
    return packaged("viewer/cloud.js") + packaged("viewer/viewer.js")


def _depth_colors() -> list[str]:
    """Eleven colours of the maps' colour scale, from far to near, as CSS writes them."""
    return [to_hex(colormaps[COLOR_MAP](position)) for position in np.linspace(0, 1, 11)]
