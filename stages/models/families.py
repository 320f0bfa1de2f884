"""The families of models; a new one is a file beside these and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.models import genpercept, lotus, marigold, transformers_models
from stages.models.family import Family

FAMILIES: Mapping[str, Family] = {
    "marigold": marigold.FAMILY,
    "lotus": lotus.FAMILY,
    "genpercept": genpercept.FAMILY,
    "transformers": transformers_models.FAMILY,
}
"""By the name of their loader; the first that recognises a folder has it."""


def family_of(folder: Path) -> str:
    """The loader that a folder is laid out for; `transformers` for one that no family recognises, whose library says why."""
    return next((name for name, family in FAMILIES.items() if family.recognises(folder)), "transformers")
