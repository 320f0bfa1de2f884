"""What all manifests of a column come to, remembered under a digest of everything that the answer follows from.

`index/<column>+totals` in the run has it. Nothing is taken from it unless the names in the column's folder, the state of every
manifest (see `Place.states`), the column's record and the sources' numbers of images are, one and all, those of when it was
written: the digest of them is its key. It is never needed. Whatever is missing, cut, or of another version is as if it were not
there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from manifests import facts
from manifests.facts import INDEX
from manifests.location import Location
from manifests.place import place_of
from manifests.run import ColumnListing, Run
from manifests.schema import ColumnRecord, to_json

_FORMAT = f"distill-any-depth totals 1, {sys.byteorder} endian"
_LIMIT_BYTES = 1 << 20


def totals_key(run: Run, column: ColumnRecord, listing: ColumnListing) -> str | None:
    """A digest of all that a column's numbers follow from.

    None where a part has failed, where the state of a manifest is not known, as just after it was written, and for few parts.
    """
    if listing.failures or len(listing.states) < len(listing.manifests) or len(listing.manifests) < facts.WORTH_AN_INDEX:
        return None
    digest = hashlib.sha256(f"{_FORMAT}\n{run.part_size}\n".encode())
    digest.update(to_json(column))
    digest.update(json.dumps([(source.source, source.images) for source in run.sources]).encode())
    for names in (map("=".join, listing.states.items()), listing.zarrs):
        digest.update("\n".join(sorted(names)).encode("utf-8", "surrogateescape"))
        digest.update(b"\0")
    return digest.hexdigest()


def read_totals(run_dir: Location, column: str, key: str | None) -> dict[str, Any] | None:
    """What was written under this key; None where that is not there as it was written."""
    if key is None:
        return None
    with suppress(OSError, ValueError, TypeError, LookupError, RecursionError):
        raw = place_of(run_dir).read(_name(column), limit_bytes=_LIMIT_BYTES)
        checksum, _, content = raw.partition(b"\n")
        document = json.loads(content)
        if checksum == hashlib.sha256(content).hexdigest().encode() and document["key"] == key:
            return dict(document["totals"])
    return None


def has_totals(run_dir: Location, column: str) -> bool:
    """Whether any are there, of whatever key."""
    try:
        return place_of(run_dir).exists(_name(column))
    except OSError:
        return False


def write_totals(run_dir: Location, column: str, key: str, totals: Mapping[str, Any]) -> None:
    """Remembers them, where the run can be written."""
    content = json.dumps({"key": key, "totals": totals}).encode()
    with suppress(OSError):
        place_of(run_dir).replace(_name(column), hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def _name(column: str) -> str:
    return f"{INDEX}/{column}+totals"  # no column has a + in its name
