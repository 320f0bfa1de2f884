"""Which of several licences of weights binds the labels made with them the most.

The order, most restrictive first: unknown, non-commercial or research only, restricted in use or copyleft, permissive. A name
that is not known here counts as unknown: whoever relies on it must read it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

UNKNOWN = "unknown"

# Matched against the whole name, in lower case, with hyphens for spaces and underscores.
_CLASSES = (
    ("non-commercial", r"cc-by-nc(-sa|-nd)?(-\d\.\d)?|(for-)?(non-?commercial|research)(-(use|purposes))?(-only)?|apple-amlr"),
    (
        "restricted in use or copyleft",
        r"((creativeml|bigscience)-)?(open)?rail(\+\+)?(-m)?|cc-by-sa(-\d\.\d)?|[al]?gpl(-\d\.\d)?(-only|-or-later)?|mpl-2\.0",
    ),
    ("permissive", r"apache-2\.0|mit|bsd-[23]-clause|0bsd|isc|zlib|unlicense|cc0-1\.0|cc-by-\d\.\d"),
)


def licence_class(licence: str) -> str:
    """`unknown`, `non-commercial`, `restricted in use or copyleft` or `permissive`."""
    name = re.sub(r"[\s_]+", "-", licence.strip().lower())
    return next((kind for kind, pattern in _CLASSES if re.fullmatch(pattern, name)), UNKNOWN)


def most_restrictive(licences: Collection[str]) -> tuple[str, ...]:
    """The names, sorted, that are in the most restrictive class found; several where it is hard to say which binds more."""
    order = [UNKNOWN, *(kind for kind, _ in _CLASSES)]
    by_class = {kind: sorted({name for name in licences if licence_class(name) == kind}) for kind in order}
    return next((tuple(names) for names in by_class.values() if names), ())
