"""`python -m benchmarks.label_bits`: what fewer bits per code do to the losses and their gradients, beside the bits on disk.

For rendered photographs: a teacher's maps as they are and as they come back from the store, and what the distances between them
and a student's maps are worth. Prints a Markdown table for docs/benchmarks.md. Deterministic but for the machine's rounding.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.label.config import DEMO_CHECKPOINTS, demo_teacher
from stages.distillation.losses import distillation_loss, gradient_loss
from stages.label_store import Label, decode_label, quantise
from stages.label_store.packing import pack_codes
from stages.models import load_model
from stages.models.spec import ModelSpec
from stages.scenes import render_scene
from stages.views import onto_grid

_BITS = (8, 9, 10, 11, 12, 13, 14, 16)
_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "L_Dis, hybrid": distillation_loss,
    "L_Dis, global": lambda *maps: distillation_loss(*maps, normalization="global"),
    "L_grad": gradient_loss,
}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--side-px", type=int, default=560, help="of the teachers' maps")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    side_px = arguments.side_px
    pictures = [render_scene(seed, height_px=side_px, width_px=side_px).rgb for seed in range(arguments.images)]
    student = load_model(ModelSpec(name="student", checkpoint=str(DEMO_CHECKPOINTS / "student")))
    shown = [student.predict(picture[None])[0] for picture in pictures]
    for name in ("primary", "assistant"):
        teacher = load_model(demo_teacher(name))
        maps = [teacher.predict(picture[None])[0] for picture in pictures]
        print(f"\n{name}, contexts of {side_px} px\n")
        _print_table(maps, shown)
        small = round(side_px * 0.56)  # a patch of a photograph of 1,000 px, on the context's grid
        print(f"\n{name}, {side_px} px averaged to {small} as a patch's label is\n")
        _print_table([onto_grid(depth, small, small) for depth in maps], [onto_grid(depth, small, small) for depth in shown])


def _print_table(maps: Sequence[np.ndarray], shown: Sequence[np.ndarray]) -> None:
    heads = "".join(f" {name}: value | gradient |" for name in _LOSSES)
    print(f"| bits of a code | bits/px on disk |{heads}\n|" + "---|" * (2 + 2 * len(_LOSSES)))
    exact = {name: [_loss_and_gradient(loss, s, d) for d, s in zip(maps, shown, strict=True)] for name, loss in _LOSSES.items()}
    for bits in _BITS:
        coded = [quantise(Label(values=depth, valid=np.ones(depth.shape, bool)), bits) for depth in maps]
        on_disk = sum(8 * len(pack_codes(label.codes, max(label.codes.shape))) for label in coded) / sum(m.size for m in maps)
        back = [decode_label(label.codes, label.scale, label.offset).values for label in coded]
        cells = []
        for name, loss in _LOSSES.items():
            found = [_loss_and_gradient(loss, s, d) for d, s in zip(back, shown, strict=True)]
            value = np.mean([abs(f - e) / e for (f, _), (e, _) in zip(found, exact[name], strict=True)])
            gradient = np.mean([_difference(f, e) for (_, f), (_, e) in zip(found, exact[name], strict=True)])
            cells.append(f"{100 * value:.3f} % | {100 * gradient:.2f} %")
        print(f"| {bits} | {on_disk:.2f} | " + " | ".join(cells) + " |")


def _loss_and_gradient(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], prediction: np.ndarray, label: np.ndarray
) -> tuple[float, np.ndarray]:
    leaf = torch.from_numpy(prediction[None]).requires_grad_()
    value = loss(leaf, torch.from_numpy(label[None]), torch.ones(1, *label.shape, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value, leaf)
    return float(value.detach()), gradient[0].numpy()


def _difference(found: np.ndarray, exact: np.ndarray) -> float:
    """One minus the cosine of the angle between two gradients: the share of the step that goes elsewhere."""
    return float(1 - (found * exact).sum() / np.sqrt((found**2).sum() * (exact**2).sum()))


if __name__ == "__main__":
    main()
