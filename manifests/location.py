"""Where a run or a source is: a path of this machine, or a URL of an object store."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import TypeAlias, TypeVar, cast

from manifests.errors import RefusedError

BUCKET_SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
"""Of stores that a run may be in: all of them can create an object only where there is none."""
_IN_MEMORY = "memory"  # for tests: of this process alone
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class Url:
    """A place in a bucket, as in `s3://bucket/runs/a`. It is no path: whatever wants one of this machine raises TypeError, so
    that no URL becomes a folder of that name."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Raises ValueError for what has no scheme and no bucket."""
        scheme, _, rest = text.partition("://")
        if not is_url(text) or not rest.strip("/"):
            raise ValueError(f"{text!r}: expected a URL with a bucket, such as s3://bucket/runs/a")
        self._text = f"{scheme.lower()}://{rest.strip('/')}"

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Url({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> tuple[type[Url], tuple[str]]:
        return Url, (self._text,)

    def __truediv__(self, name: str | PurePath) -> Url:
        text = name.as_posix() if isinstance(name, PurePath) else name
        return self if text in ("", ".") else Url(f"{self._text}/{text}")

    @property
    def scheme(self) -> str:
        """In lower case."""
        return self._text.partition("://")[0]

    @property
    def key(self) -> str:
        """What follows the bucket's name, without `/` at its ends; empty for the bucket itself."""
        return self._text.partition("://")[2].partition("/")[2]

    @property
    def bucket(self) -> Url:
        """The bucket (or host) itself."""
        return Url(self._text[: len(self._text) - len(self.key)]) if self.key else self

    @property
    def name(self) -> str:
        """The last part."""
        return self._text.rpartition("/")[2]

    @property
    def parent(self) -> Url:
        """All but the last part; the bucket is its own parent."""
        return Url(self._text.rpartition("/")[0]) if self.key else self


Location: TypeAlias = Path | Url
"""Of a run, a source or an output. Both kinds have `name`, `parent`, `/` and `str`."""
LocationT = TypeVar("LocationT", bound=Location)


def below(location: LocationT, *names: str) -> LocationT:
    """What has this name there, folder by folder."""
    return cast(LocationT, location / "/".join(names))


def is_url(text: str) -> bool:
    """Whether this names something by a scheme, as in `s3://bucket/run`, which no path of ours may be taken for."""
    return bool(_URL.match(text))


def location_of(place: str | Location) -> Location:
    """What a text names: a URL where it has a scheme, else a path. Raises ValueError for a URL without a bucket."""
    if isinstance(place, str) and is_url(place):
        return Url(place)
    return place if isinstance(place, Path | Url) else Path(place)


def on_disk(location: Location) -> Path:
    """The same as a path. Raises TypeError for a URL."""
    return Path(location)  # type: ignore[arg-type]


def absolute(location: Location) -> Location:
    """The same for processes with another working directory, and other ways through links."""
    return location if isinstance(location, Url) else location.resolve()


def parents(location: Location) -> tuple[Location, ...]:
    """What it is in, from the inside outwards."""
    if isinstance(location, Path):
        return tuple(location.parents)
    found: list[Url] = []
    while location.key:
        found.append(location := location.parent)
    return tuple(found)


def refuse_other_schemes(url: Url) -> None:
    """Raises RefusedError for a URL of no bucket that a run can be in."""
    if url.scheme not in (*BUCKET_SCHEMES, _IN_MEMORY):
        hint = f"; /{str(url)[7:].lstrip('/')} is a path" if url.scheme == "file" else ""
        known = ", ".join(f"{scheme}://" for scheme in BUCKET_SCHEMES)
        raise RefusedError(f"{url}: a URL that nothing is written to; expected a path, or one of {known}{hint}")
