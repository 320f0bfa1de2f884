"""`python -m pipeline.demo_models WHICH`: train one of the demo's checkpoints on rendered scenes, from nothing.

Renders the scenes once into a memory-mapped cache, then trains at growing input sizes. Interrupted, it resumes from its
last state. The checkpoints in `pipeline/demo_checkpoints/` were made by this command; `docs/demo-models.md` has the log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from stages.demo_networks import (
    DEMO_INPUT_PX,
    IMAGENET_MEAN,
    IMAGENET_STD,
    OneStepDiffusion,
    build_depth_anything,
    draw_crops,
    load_weights,
    save_depth_anything,
    supervised_loss,
)
from stages.evaluation.rendered import SCENE_SIDE_PX
from stages.scenes import render_scene

_IMAGENET = tuple(torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

_STATE_EVERY = 200


@dataclass(frozen=True, kw_only=True)
class DemoModelConfig:
    """Train one of the demo's checkpoints on rendered scenes."""

    which: tyro.conf.Positional[Literal["primary", "assistant", "student"]]
    """Which network."""
    output: Path
    """Folder of the checkpoint; the training state is kept beside it as OUTPUT.state.pt."""
    cache: Path
    """Folder of the rendered scenes; made where missing."""
    init: Path | None = None
    """Checkpoint whose weights the training starts from; random ones without it."""
    scenes: int = 8000
    """Scenes to train on: the seeds 0 to N - 1. Held-out scenes have seeds from 1,000,000."""
    yard_reach_m: float = 12
    """How far the scenes' yards may reach; farther ones are harder."""
    steps: int = 4600
    """Optimizer steps. A run that is resumed with another number keeps its pace and moves its decay."""
    sides_px: tuple[int, ...] = (96, 144, 192)
    """Input sizes, from first to last."""
    side_until: tuple[float, ...] = (0.72, 0.93, 1.0)
    """Share of the steps at which each input size ends."""
    batch: tuple[int, ...] = (16, 16, 16)
    """Batch at each input size."""
    lr: float = 1e-3
    """Peak learning rate: AdamW, and Muon at the same update size for the transformer's matrices."""
    muon: bool = True
    """Use Muon for the matrices of the ViT and the convolutions of the UNet and the VAE."""
    relative_from: int = 0
    """Step from which the loss also counts errors relative to the disparity; before it, plain L1 finds the layout."""
    seed: int = 0
    """Seed of weights, crops and colours."""
    threads: int = 1
    """CPU threads."""


def main() -> None:
    config = tyro.cli(DemoModelConfig, description=__doc__)
    torch.set_num_threads(config.threads)
    rgb, disparity = _scene_cache(config.cache, config.scenes, config.yard_reach_m)
    _train(config, rgb, disparity)


def _scene_cache(folder: Path, scenes: int, yard_reach_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Memory maps of pictures uint8 [n, s, s, 3] and disparities float16 [n, s, s] (1/m; the sky is 0)."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{scenes}-{yard_reach_m:g}m"
    done, shape = folder / f"done-{name}", (scenes, SCENE_SIDE_PX, SCENE_SIDE_PX)
    mode = "r" if done.exists() else "w+"
    rgb = np.memmap(folder / f"rgb-{name}.u8", np.uint8, mode, shape=(*shape, 3))
    disparity = np.memmap(folder / f"disparity-{name}.f16", np.float16, mode, shape=shape)
    if mode == "w+":
        with ProcessPoolExecutor() as pool:
            rendered = pool.map(partial(_render, yard_reach_m=yard_reach_m), range(scenes), chunksize=16)
            for index, (picture, d) in enumerate(tqdm(rendered, "render", total=scenes, mininterval=5)):
                rgb[index], disparity[index] = picture, d
        done.touch()
    return rgb, disparity


def _render(seed: int, yard_reach_m: float) -> tuple[np.ndarray, np.ndarray]:
    scene = render_scene(seed, height_px=SCENE_SIDE_PX, width_px=SCENE_SIDE_PX, yard_reach_m=yard_reach_m)
    return scene.rgb, (1 / scene.depth_m).astype(np.float16)


def _build(which: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The network, and its forward pass from pictures in [0, 1] to disparity whose range is about [0, 1]."""
    if which == "assistant":
        assistant = OneStepDiffusion()
        return assistant, lambda x: (assistant(x * 2 - 1) + 1) / 2
    if which == "primary":
        model = build_depth_anything(hidden=192, layers=6, heads=6, patch_px=8, fusion=48)
    else:
        model = build_depth_anything(hidden=96, layers=4, heads=3, patch_px=12, fusion=32)
    return model, lambda x: model(pixel_values=(x - _IMAGENET[0]) / _IMAGENET[1]).predicted_depth


class _KernelMuon(torch.optim.Muon):
    """Muon that takes convolution kernels too, each as a matrix [out, in * height * width]."""

    def __init__(self, kernels: list[nn.Parameter], lr: float) -> None:
        self._kernels = kernels
        self._matrices = [kernel.detach().flatten(1) for kernel in kernels]  # views: a step on them is one on the kernels
        super().__init__(self._matrices, lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: None = None) -> None:
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for kernel in self._kernels:
            kernel.grad = None


def _optimizers(config: DemoModelConfig, model: nn.Module) -> list[torch.optim.Optimizer]:
    kernels, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            of_assistant = isinstance(model, OneStepDiffusion)
            is_kernel = parameter.ndim >= 2 if of_assistant else parameter.ndim == 2 and ".layer." in name
            (kernels if config.muon and is_kernel else rest).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, config.lr, betas=(0.9, 0.98), weight_decay=0.01)]
    if kernels:
        optimizers.append(_KernelMuon(kernels, config.lr))
    return optimizers


def _pace(step: int, steps: int) -> float:
    """Learning rate as a share of its peak: warm-up, plateau, and a linear decay over the last 40 %."""
    return min(1, (step + 1) / 100, (steps - step) / (0.4 * steps))


def _train(config: DemoModelConfig, rgb: np.ndarray, disparity: np.ndarray) -> None:
    torch.manual_seed(config.seed)
    model, forward = _build(config.which)
    if config.init is not None:
        load_weights(model, config.init)
    if config.which != "assistant":  # channels last: a third faster for the DPT neck on a CPU, slower for the UNet
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizers = _optimizers(config, model)
    state_file = config.output.with_suffix(".state.pt")
    first_step, seconds = _restore(state_file, model, optimizers)
    started = time.perf_counter()
    with tqdm(total=config.steps, initial=first_step, desc=config.which, mininterval=5) as bar:
        for step in range(first_step, config.steps):
            loss = _learn(config, step, model, forward, optimizers, rgb, disparity)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if (step + 1) % _STATE_EVERY == 0 or step + 1 == config.steps:
                taken = seconds + time.perf_counter() - started
                _save_state(state_file, model, optimizers, step + 1, taken)
    _export(config, model, seconds + time.perf_counter() - started)


def _learn(
    config: DemoModelConfig,
    step: int,
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    optimizers: list[torch.optim.Optimizer],
    rgb: np.ndarray,
    disparity: np.ndarray,
) -> float:
    """One step; its crops depend on the seed and the step alone. Returns the loss."""
    stage = next(i for i, end in enumerate(config.side_until) if step < end * config.steps)
    rng = np.random.default_rng([config.seed, step])
    pictures, target, far_weight = draw_crops(rgb, disparity, rng, config.batch[stage], config.sides_px[stage])
    with torch.autocast("cpu", torch.bfloat16):
        prediction = forward(pictures)
    loss = supervised_loss(prediction, target, far_weight if step >= config.relative_from else None)
    if not torch.isfinite(loss):
        raise SystemExit(f"step {step}: the loss is {loss.item()}; stopped before the update, the last state is kept")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _pace(step, config.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _save_state(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], step: int, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = [optimizer.state_dict() for optimizer in optimizers]
    aside = path.with_suffix(".part")
    torch.save({"step": step, "seconds": seconds, "model": model.state_dict(), "optimizers": saved}, aside)
    aside.replace(path)


def _restore(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """The step to resume with and the seconds spent so far; both 0 where no state is kept."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["seconds"]


def _export(config: DemoModelConfig, model: nn.Module, seconds: float) -> None:
    config.output.mkdir(parents=True, exist_ok=True)
    if isinstance(model, OneStepDiffusion):
        model.save(config.output, torch.float16)
    else:
        save_depth_anything(model, config.output, torch.float16, DEMO_INPUT_PX)
    record = {
        "which": config.which,
        "seed": config.seed,
        "scenes": config.scenes,
        "steps": config.steps,
        "minutes": round(seconds / 60, 1),
        "depth_space": "disparity_affine_invariant",
        "licence": "Apache-2.0",
        # A transformers checkpoint says its size where that library reads it.
        **({"input_px": DEMO_INPUT_PX} if isinstance(model, OneStepDiffusion) else {}),
    }
    (config.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
