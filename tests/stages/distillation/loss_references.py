"""The paper's equations and the other losses' definitions a second time: NumPy, float64, one pixel or token at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.distillation.losses import PatchGroup


def random_maps(
    seed: int, shape: tuple[int, ...] = (3, 9, 11), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """A prediction that resembles its label, the label, and a mask with holes."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.rand(shape, generator=rng, dtype=dtype) ** 2 * 5 + 1
    prediction = 2 * label + torch.rand(shape, generator=rng, dtype=dtype)
    return prediction, label, torch.rand(shape, generator=rng) > 0.2


def random_tokens(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A student's tokens, between unrelated and equal to the frozen ones; these; and which count."""
    rng = torch.Generator().manual_seed(seed)
    theirs, noise = (torch.randn(3, 7, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    return theirs + noise * torch.linspace(0, 3, 7)[:, None], theirs, torch.rand(3, 7, generator=rng) > 0.2


def reference_map_loss(
    prediction: np.ndarray, label: np.ndarray, normalization: str, segments: str = "range", trim_fraction: float = 0.0
) -> float:
    """Equations 1 to 6 for the valid pixels of one map, without those of the largest loss."""
    losses = np.sort(reference_pixel_losses(prediction, label, normalization, segments))
    return float(np.mean(losses[: len(losses) - int(len(losses) * trim_fraction)]))


def reference_pixel_losses(prediction: np.ndarray, label: np.ndarray, normalization: str, segments: str) -> np.ndarray:
    """What is averaged over pixels in equations 1 to 6."""
    if normalization == "none":
        return np.abs(prediction - label)
    contexts = []
    for count in {"global": (1,), "local": (4,), "hybrid": (1, 2, 4)}[normalization]:
        edges = np.linspace(label.min(), label.max(), count + 1)
        if segments == "quantile":
            edges = np.array([*np.sort(label)[[s * len(label) // count for s in range(count)]], label.max()])
        for s in range(count):
            last = s == count - 1
            contexts.append(
                [i for i, x in enumerate(label) if edges[s] <= x and (x <= edges[s + 1] if last else x < edges[s + 1])]
            )
    losses: list[list[float]] = [[] for _ in label]
    for context in contexts:
        p, t = (x[context] - np.median(x[context]) if context else x[:0] for x in (prediction, label))
        for i, ours, theirs in zip(context, p, t, strict=True):
            scales = np.mean(np.abs(p)), np.mean(np.abs(t))
            losses[i].append(abs(ours / scales[0] - theirs / scales[1]) if scales[1] > 1e-4 * np.ptp(label) else 0.0)
    return np.array([np.mean(one) for one in losses])


def recorded_loss(prediction: Tensor, label: Tensor, levels: tuple[int, ...]) -> Tensor:
    """The same of one map's valid pixels, [n] each, as operations of which torch records the gradient."""
    floors = [1e-4 * (x.max() - x.min()) if x.max() > x.min() else x.abs().max().clamp(min=1) for x in (prediction, label)]
    share = (label - label.min()) / (label.max() - label.min()).clamp(min=1e-30)
    losses = []
    for count in levels:
        contexts = (share * count).long().clamp(max=count - 1)
        for inside in (contexts == s for s in range(count) if (contexts == s).any()):
            middle = [(int(inside.sum()) - 1) // 2, int(inside.sum()) // 2]
            centred = [x[inside] - x[inside].sort().values[middle].mean() for x in (prediction, label)]
            if centred[1].abs().mean() > floors[1]:
                ours, theirs = (x / torch.maximum(x.abs().mean(), y.detach()) for x, y in zip(centred, floors, strict=True))
                losses.append((ours - theirs).abs().sum())
    return torch.stack([prediction.sum() * 0, *losses]).sum() / (len(levels) * len(label))


def reference_loss(prediction: Tensor, label: Tensor, valid: Tensor, *how: Any) -> float:
    """L_Dis of a batch: the mean over the maps that have a valid pixel."""
    maps = zip(prediction.numpy(), label.numpy(), valid.numpy(), strict=True)
    return float(np.mean([reference_map_loss(p[v], t[v], *how) for p, t, v in maps if v.any()]))


def reference_gradient_loss(prediction: Tensor, label: Tensor, valid: Tensor) -> float:
    """L_grad of a batch whose maps all have contrast."""
    losses = []
    for p, t, v in zip(prediction.numpy(), label.numpy(), valid.numpy(), strict=True):
        p, t = ((x - np.median(x[v])) / np.mean(np.abs(x[v] - np.median(x[v]))) for x in (p, t))
        total = 0.0
        for step in (1, 2, 4, 8):
            r, m = (p - t)[::step, ::step], v[::step, ::step]
            here = 0.0
            for y, x in np.argwhere(m):
                for y2, x2 in ((y + 1, x), (y, x + 1)):
                    if y2 < r.shape[0] and x2 < r.shape[1] and m[y2, x2]:
                        here += abs(r[y2, x2] - r[y, x])
            total += here / max(m.sum(), 1)
        losses.append(total)
    return float(np.mean(losses))


def reference_feature_loss(student: Tensor, frozen: Tensor, margin: float, valid: Tensor) -> float:
    """L_feat: token by token."""
    samples = []
    for ours, theirs, shown in zip(student.numpy(), frozen.numpy(), valid.numpy(), strict=True):
        cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b, v in zip(ours, theirs, shown, strict=True) if v]
        counted = [1 - cosine for cosine in cosines if cosine <= margin]
        samples.append(np.mean(counted) if counted else 0.0)
    return float(np.mean(samples))


def reference_anchor_loss(prediction: Tensor, valid: Tensor, level: float, spread: float) -> float:
    """The anchor: map by map."""
    losses = []
    for p, v in zip(prediction.numpy(), valid.numpy(), strict=True):
        if v.any():
            own = np.mean(np.abs(p[v] - p[v].mean()))
            losses.append(abs(p[v].mean() - level) / spread + abs(own / spread - 1))
    return float(np.mean(losses))


# --- patches --------------------------------------------------------------------------------------------------------

BOXES = torch.tensor([[[0, 0, 6, 6], [0, 4, 6, 6], [4, 0, 6, 5]], [[2, 3, 5, 6], [4, 4, 6, 6], [0, 0, 0, 0]]])
"""Top, left, height, width on a map of 10 x 10; the second sample has two patches."""


def patch_groups(label: Tensor, valid: Tensor, patch_box: Tensor) -> tuple[PatchGroup, ...]:
    """Patches given as [b, p, k, k], with boxes of 0 up to p, as the losses take them."""
    used = patch_box[..., 2] > 0
    if not used.any():
        return ()
    return (PatchGroup(label=label[used], valid=valid[used], sample=used.nonzero()[:, 0], box=patch_box[used]),)


def patch_maps(seed: int) -> tuple[Tensor, Tensor]:
    """Labels and masks for `BOXES`, filled up to 6 x 6."""
    _, label, valid = random_maps(seed, (6, 6, 6))
    label, valid = label.view(2, 3, 6, 6), valid.view(2, 3, 6, 6)
    rows, columns = torch.arange(6)[:, None], torch.arange(6)[None]
    valid = valid & (rows < BOXES[..., 2, None, None]) & (columns < BOXES[..., 3, None, None])
    return label.masked_fill(~valid, torch.nan), valid
