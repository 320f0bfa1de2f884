"""Which images of a run a gallery shows: some at random, those in which the teachers are farthest apart, and rejected ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import manifests
from manifests.agreement import compared_pairs, digest_of_parts, part_digests, read_overview
from manifests.listing import list_images
from manifests.location import Location


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images by their number in the run, rising, and how they were come by, in words."""

    numbers: list[int]
    drawn: int
    total: int
    far_apart: int
    rejected: int
    is_every_rejected: bool

    def words(self, seed: int) -> str:
        """What the gallery shows, of how much."""
        everything = self.drawn == self.total
        said = [
            f"All {self.total} images" if everything else f"{self.drawn} of {self.total} images, drawn at random (seed {seed})"
        ]
        if not everything:
            said += [f"the {self.far_apart} in which two teachers are farthest apart"] * bool(self.far_apart)
            said += [f"{'all ' * self.is_every_rejected}{self.rejected} rejected"] * bool(self.rejected)
        return "; ".join(said) + "."


def draw_sample(run_dir: Location, *, images: int, worst: int, rejected: int, seed: int) -> Sample:
    """At most so many of each kind. The worst are those that `pipeline.agreement` has found, if it has; of each two teachers.

    Raises as `load_run` does.
    """
    run = manifests.load_run(run_dir)
    parts = manifests.parts(run)
    starts = dict(zip([part.name for part in parts], np.cumsum([0, *(part.images for part in parts)]).tolist(), strict=False))
    total = sum(part.images for part in parts)
    drawn = set(np.random.default_rng(seed).choice(total, min(images, total), replace=False).tolist())
    far_apart = _far_apart(run_dir, run, starts, worst)
    refused = _rejected(run_dir, starts, rejected)
    return Sample(
        numbers=sorted(number for number in {*drawn, *far_apart, *refused[:rejected]} if 0 <= number < total),
        drawn=len(drawn),
        total=total,
        far_apart=len(far_apart),
        rejected=min(len(refused), rejected),
        is_every_rejected=len(refused) <= rejected,
    )


def _rejected(run_dir: Location, starts: dict[str, int], most: int) -> list[int]:
    """The first rejected images, and one more than `most` where there are more: of a large run not all are looked for."""
    found: dict[int, None] = {}  # in order, each once, though several columns have it
    for image in list_images(run_dir, statuses=["rejected"]) if most else ():
        if image.part in starts and image.status == "rejected":
            found[starts[image.part] + image.image] = None
        if len(found) > most:
            break
    return list(found)


def _far_apart(run_dir: Location, run: manifests.Run, starts: dict[str, int], worst: int) -> set[int]:
    found: set[int] = set()
    for pair in compared_pairs(run_dir, run) if worst else ():
        digests = [digest_of_parts(part_digests(run_dir, run, column).items()) for column in pair]
        known = read_overview(run_dir, *pair, (digests[0], digests[1]))
        found |= {starts[image.part] + image.image for image in known.farthest_apart[:worst] if image.part in starts}
    return found
