"""The page of a gallery: an HTML file beside a style sheet and a script, which works from a disk and needs no network.

What comes from a run is text, and escaped: in the page by its template, in the page's script by never being taken for markup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from manifests import RunSummary
from manifests.checker import printable
from pipeline.browse.entries import Entry
from pipeline.viewer.assets import TEMPLATES, packaged, page_style, viewer_script
from stages.depth_space import DepthSpace

_UNITS = {"depth_metric": "m", "disparity_metric": "1/m"}


@dataclass(frozen=True, kw_only=True)
class GalleryContent:
    """What the page says. run: the run's name. shown: of how much the gallery shows what, in words."""

    run: str
    shown: str
    summary: RunSummary
    entries: Sequence[Entry]


def gallery_page(content: GalleryContent) -> str:
    """The page as HTML."""
    entries = content.entries
    spaces: dict[str, DepthSpace] = {teacher.name: teacher.space for entry in entries for teacher in entry.teachers}
    apart = [entry.agreement.abs_rel for entry in entries if entry.agreement.abs_rel is not None]
    return TEMPLATES.get_template("browse/gallery.html.j2").render(
        content=content,
        run=printable(content.run),
        entries=entries,
        documents={entry.name: entry.document for entry in entries},
        teachers={name: _UNITS.get(space, "") for name, space in sorted(spaces.items())},
        sources=sorted({entry.source for entry in entries}),
        statuses=Counter(entry.status for entry in entries),
        most_apart=max(apart, default=0.0),
        columns=content.summary.columns,
        licences=[
            (column.name, ", ".join(map(printable, column.licences))) for column in content.summary.columns if column.licences
        ],
    )


def style_sheet() -> str:
    """The look of all pages, of the large view, and what a gallery has beside these."""
    return page_style() + packaged("viewer/viewer.css") + packaged("browse/gallery.css")


def script() -> str:
    """All that the page does."""
    return viewer_script() + packaged("browse/gallery.js")
