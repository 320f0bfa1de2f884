"""Which parts of a run are a driver's, where several share it by `--shard I/N`.

A part belongs to one shard with all its columns, so that no driver waits for another one's pictures. Which one follows from its
source's name and its number alone: nobody has to be asked, and what is added to a run later moves no part elsewhere.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from manifests.run import PartId

_FORM = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)


@dataclass(frozen=True)
class Shard:
    """The share `number`, from 0, of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, part: PartId) -> bool:
        """Whether a part is in this shard."""
        return self.has_number(part.source, part.number)

    def has_number(self, source: str, number: int) -> bool:
        """Whether it has this part of a source, of whose parts it has as many as the other shards, or one more or less; for
        each source the count begins with another shard."""
        return (number + _first(source)) % self.count == self.number


def parse_shard(text: str) -> Shard:
    """What `I/N` names. Raises ValueError unless I is from 0 to N - 1."""
    if (found := _FORM.fullmatch(text)) and int(found[1]) < int(found[2]):
        return Shard(int(found[1]), int(found[2]))
    raise ValueError(f"{text!r}: expected I/N with I from 0 to N - 1, such as 0/4, 1/4, 2/4 and 3/4 for four drivers")


def _first(source: str) -> int:
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big")
