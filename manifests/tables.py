"""Tables of text: aligned for a terminal, and in Markdown."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Rows of equal length as lines; the columns of these numbers to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        [cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return ["  ".join(line).rstrip() for line in lines]


def markdown_table(header: Sequence[str], rows: Collection[Sequence[object]]) -> list[str]:
    """The lines of a table in GitHub's Markdown, in which each value is shown as it is."""
    lines = [header, ["---"] * len(header), *([markdown_text(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def markdown_text(value: object) -> str:
    """Text that stays within its line and cell and is shown as it is; four digits of a float."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", " ".join(text.split()))
