"""What is kept of a study: a small file for each finished piece of work, from which any later call goes on.

A record says what was done (`what`: every setting that decides its numbers, and digests of the teachers), what came of it,
and by which version of the code. Records of several machines and sittings are merged by lying in one folder. One whose `what`
is not what this study would do is left alone and not counted.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

import manifests
from manifests.errors import RefusedError

_FORMAT = 1
_DIGITS = 5


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished piece of work. scores: by metric, one for each of `scenes`, NaN where the scene has none.

    failure: why there are no scores, of a training that ended by itself.
    """

    name: str
    what: Mapping[str, Any]
    scenes: tuple[str, ...]
    scores: Mapping[str, tuple[float, ...]]
    cpu_s: float
    failure: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    code: str = field(default_factory=lambda: code_sha256())
    """Digest of the code that did it."""

    def column(self, metric: str) -> Float[np.ndarray, "scenes"]:
        """The scores in one metric."""
        return np.array(self.scores[metric], np.float64)


class Records:
    """A folder of records."""

    def __init__(self, folder: Path) -> None:
        """Reads all of them. Raises RefusedError, naming the file, for one that is no record."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._found = {record.name: record for record in map(_read, sorted(folder.glob("*.json")))}

    def get(self, name: str, what: Mapping[str, Any]) -> Record | None:
        """The record of this work as it would be done now."""
        found = self._found.get(name)
        return found if found is not None and found.what == _plain(what) else None

    def differing(self, name: str, what: Mapping[str, Any]) -> list[str]:
        """In which settings the record of this name is of other work; none where there is no record, or it counts."""
        found = self._found.get(name)
        wanted = _plain(what)
        return [] if found is None else sorted(k for k in {*found.what, *wanted} if found.what.get(k) != wanted.get(k))

    def put(self, record: Record) -> None:
        """Keep a record in place of any other of its name; whole or not at all, whatever happens meanwhile."""
        write_record(self.folder, record)
        self._found[record.name] = _read(self.folder / f"{record.name}.json")

    def __iter__(self):
        return iter(self._found.values())


def write_record(folder: Path, record: Record) -> None:
    """Keep a record; from any process."""
    scores = {
        metric: [None if math.isnan(value) else float(f"{value:.{_DIGITS}g}") for value in values]
        for metric, values in record.scores.items()
    }
    content = {"format": _FORMAT, **asdict(record), "what": _plain(record.what), "scores": scores}
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    manifests.write_replacing(folder / f"{record.name}.json", f"{{\n{lines}\n}}\n".encode())


@cache
def code_sha256() -> str:
    """A digest of this package's modules, which says what did a piece of work wherever it was installed."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for package in ("manifests", "pipeline", "stages"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _read(path: Path) -> Record:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said.pop("format") != _FORMAT or said["name"] != path.stem:
            raise ValueError(f"expected format {_FORMAT} and the name {path.stem!r}")
        scores = {
            metric: tuple(math.nan if v is None else float(v) for v in values) for metric, values in said["scores"].items()
        }
        record = Record(**(said | {"scores": scores, "scenes": tuple(said["scenes"])}))
        if any(len(values) != len(record.scenes) for values in scores.values()):
            raise ValueError("not as many scores as scenes")
        return record
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RefusedError(f"{path}: no record of a study ({error}); take it out of the folder") from error


def _plain(what: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(what, sort_keys=True, default=str))
