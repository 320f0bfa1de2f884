"""The labels of a run as a dataset of PyTorch, for any other program's training.

One item is one photograph: what the teachers saw, and what each of them says. Nothing is scaled, shifted or converted: numbers
stay in each teacher's own depth space. This project's own training has another one, `stages.distillation.dataset`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from manifests.errors import RefusedError
from stages.label_store.opening import open_run, refuse_other_files


class LabelledPhotograph(TypedDict):
    """A photograph, and what t teachers say of it. Labels are 0 where they are not valid."""

    source: str
    key: str
    image: UInt8[Tensor, "3 h w"]
    label: Float32[Tensor, "t h w"]
    valid: Bool[Tensor, "t h w"]


class LabelledPhotographs(Dataset[LabelledPhotograph]):
    """The photographs that all these teachers have labelled, in the run's order. Safe to send to worker processes.

    Reads the manifests of all parts once, when it is made, and the arrays of a part when an item of it is first asked for.
    Items raise as `open_run(run_dir)[teacher][key]` does. Let worker processes begin by `forkserver` or `spawn`: Zarr does not
    survive a fork.
    """

    def __init__(self, run_dir: str | Path, teachers: Sequence[str] = (), *, context: int = 0) -> None:
        """`teachers`: columns, in the order of the items' labels; all that the run has where none is named. `context`: which
        one, where the run draws several squares of each photograph.

        Raises NoLabelsError for a column that is not there, RefusedError for a context that no photograph has and where no
        photograph has labels of all these teachers.
        """
        run = open_run(run_dir)
        self.context, self.teachers = context, tuple(teachers) or tuple(run)
        if not 0 <= context < run.images.contexts:
            raise RefusedError(f"{run_dir}: found context {context}, expected one from 0 to {run.images.contexts - 1}")
        self.columns, self.pictures = [run[name] for name in self.teachers], run.pictures
        self.depth_spaces = tuple(column.depth_space for column in self.columns)
        labelled = [column.numbers(context) for column in (self.pictures, *self.columns)]
        self.numbers = reduce(np.intersect1d, labelled)
        if not self.columns or not len(self.numbers):
            counts = ", ".join(f"{name} {len(of)}" for name, of in zip(("images", *self.teachers), labelled, strict=True))
            raise RefusedError(f"{run_dir}: no photograph has labels of every teacher (labelled: {counts}); label first")

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> LabelledPhotograph:
        number = int(self.numbers[index])
        refuse_other_files(number, [self.pictures, *self.columns])
        seen = self.pictures.numbered(number)
        picture, image = seen.pictures[self.context], seen.image
        labels = [column.whole(number, self.context) for column in self.columns]
        if sizes := {label.values.shape for label in labels} - {picture.shape[:2]}:
            where = f"{self.pictures.images.run_dir}: {image.key!r} of the source {image.source!r}"
            raise RefusedError(f"{where}: its picture is {picture.shape[:2]}, labels are {sizes}; verify the run")
        return LabelledPhotograph(
            source=image.source,
            key=image.key,
            image=torch.from_numpy(picture.transpose(2, 0, 1).copy()),
            label=torch.from_numpy(np.stack([label.values for label in labels])),
            valid=torch.from_numpy(np.stack([label.valid for label in labels])),
        )
