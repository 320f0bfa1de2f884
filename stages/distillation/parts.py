"""The parts that a training reads, in a few arrays: they are sent to each process that reads, and a run may have 100,000.

PyTorch's DataLoader gives its processes tensors in shared memory, so that all of them together have these arrays once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainPart:
    """A part that is committed in every column, and which of its rows in the store can be trained on."""

    name: str
    places: Int[np.ndarray, "m"]
    """The rows that are drawn from: of all its images, or of those that were chosen, labelled or not."""
    rows: Int[np.ndarray, "n"]
    """Those with labels; where columns have the labels of one training's draw alone, in any of them."""
    digests: tuple[str, ...]
    """One for each column, `images` first."""


class TrainParts(Sequence[TrainPart]):
    """Parts in the order of the run. Not to be written to."""

    def __init__(self, parts: Sequence[TrainPart]) -> None:
        names = np.array([part.name.encode() for part in parts], "S")
        digests = np.frombuffer(bytearray.fromhex("".join(digest for part in parts for digest in part.digests)), np.uint8)
        self._names = torch.from_numpy(names.view(np.uint8).reshape(len(parts), -1)) if parts else torch.empty(0, 0)
        self._digests = torch.from_numpy(digests.reshape(len(parts), len(parts[0].digests) if parts else 0, 32))
        self._rows, self._row_starts = _ragged([part.rows for part in parts])
        self._places, self._place_starts = _ragged([part.places for part in parts])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> TrainPart:  # type: ignore[override]
        if not 0 <= number < len(self):
            raise IndexError(number)
        return TrainPart(
            name=self._names[number].numpy().tobytes().rstrip(b"\0").decode(),
            places=_item(self._places, self._place_starts, number),
            rows=_item(self._rows, self._row_starts, number),
            digests=tuple(digest.numpy().tobytes().hex() for digest in self._digests[number]),
        )

    def __iter__(self) -> Iterator[TrainPart]:
        return (self[number] for number in range(len(self)))

    def images_in_use(self, contexts_per_image: int) -> list[int]:
        """How many images of each part have rows with labels."""
        images, starts = self._rows.numpy() // contexts_per_image, self.starts
        first = np.diff(images, prepend=-1) != 0
        first[starts[:-1][np.diff(starts) > 0]] = True
        return np.diff(np.concatenate([[0], np.cumsum(first)])[starts]).tolist()

    @property
    def starts(self) -> Int[np.ndarray, "n"]:
        """Where the rows of each part begin, were they all counted on, and the last end."""
        return self._row_starts.numpy()

    @property
    def places(self) -> tuple[int, ...]:
        """How many rows of each part are drawn from."""
        return tuple(np.diff(self._place_starts.numpy()).tolist())


def _ragged(lists: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    starts = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return torch.from_numpy(np.concatenate([np.empty(0, np.int32), *lists]).astype(np.int32)), torch.from_numpy(starts)


def _item(values: Tensor, starts: Tensor, number: int) -> np.ndarray:
    return values.numpy()[int(starts[number]) : int(starts[number + 1])]
