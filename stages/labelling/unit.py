"""The unit of labelling, and how one ends: what passes between the driver and its workers. Imports no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import manifests
from manifests.errors import DistillError
from manifests.location import Location
from stages.sources.source import CatalogueRow, Source
from stages.views import Resampler, ViewPlan


class InputChangedError(DistillError, ValueError):
    """An image's bytes are not those that the column `images` was made from."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One part x column, with everything that its labels depend on."""

    run_dir: Location
    records: Mapping[str, str]
    """The sha256 of the records of the run and of the column that the unit belongs to, by their path in the run."""
    column: str
    part: str
    attempt: str
    source: Source
    rows: tuple[CatalogueRow, ...]
    plan: ViewPlan
    seed: int
    fingerprint: Mapping[str, Any]
    drawn: tuple[int, ...] | None = None
    """The rows to be labelled, of a training's draw; None is all."""
    with_patches: bool = True
    excluded: Mapping[int, manifests.Reason] = field(default_factory=dict)
    """Rows that are rejected unseen, because they were seen to take their worker down."""

    @property
    def label_bits(self) -> int:
        """Of the codes of its labels; columns of old do not say that they have 16."""
        return int(self.fingerprint.get("label_bits", 16))

    @property
    def resampler(self) -> Resampler:
        """What cuts its pictures; runs of old do not say that it was Pillow."""
        return self.fingerprint.get("resampler", "pillow")

    @property
    def arrays(self) -> str:
        """The Zarr group of this attempt, relative to the run."""
        return (manifests.column_dir(Path(), self.column) / f"{self.part}.{self.attempt}.zarr").as_posix()


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """What became of a unit: `committed` is False when another attempt had been first."""

    committed: bool
    labelled: int
    rejected: int
    batch_size: int | None = None
    """The teacher's batch at the end: as it was given, or less for want of memory."""
