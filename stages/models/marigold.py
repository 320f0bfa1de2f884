"""Marigold: diffusion from noise, through the pipeline of diffusers, with the noise of each picture drawn from its own seed.

Affine-invariant depth in [0, 1], near = small (or disparity, for a checkpoint that says so). `input_px` is the pipeline's
`processing_resolution`: with None the picture is not resized, only its edges are repeated to a multiple of 8. Members of an
ensemble are aligned in scale and shift (scipy) and merged by their median, picture by picture.

Versions 1.0 and 1.1 have a DDIM scheduler, which draws no noise after the first; that of the LCM version draws some between its
steps, from the picture's seed too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from manifests.errors import RefusedError
from stages.depth_space import DepthSpace
from stages.models.checkpoints import read_json
from stages.models.diffusion_parts import load_parts
from stages.models.family import Family, FamilyStatements, PredictsOnDevice, Statement, pixels, training_size
from stages.models.genpercept import is_marigold
from stages.models.pixels import out_of_memory
from stages.models.precision import in_memory_format
from stages.models.spec import ModelSpec


class MarigoldModel(PredictsOnDevice):
    """`MarigoldDepthPipeline` on a checkpoint in its layout; the text encoder is used once and not kept."""

    @out_of_memory()
    def __init__(self, spec: ModelSpec, folder: Path, device: str) -> None:
        from diffusers import MarigoldDepthPipeline

        self.spec, self._dtype, self._device = spec, getattr(torch, spec.weights_dtype), device
        kind = _prediction_type(spec, folder)
        vae, unet, text = load_parts(folder, self._dtype, device)
        in_memory_format(spec, vae, unet)
        scheduler = _scheduler(folder, spec.steps)
        scheduler.step = functools.partial(self._step, scheduler.step, type(scheduler).__name__ == _LCM)
        self._later_noise: list[torch.Generator] = []
        absent: Any = None
        pipeline = MarigoldDepthPipeline(
            unet=unet, vae=vae, scheduler=scheduler, text_encoder=absent, tokenizer=absent, prediction_type=kind
        )
        pipeline.empty_text_embedding = text
        pipeline.set_progress_bar_config(disable=True)
        if spec.compile:
            pipeline.unet = torch.compile(unet)
        self._pipeline = pipeline

    @out_of_memory()
    @torch.inference_mode()
    def predict_on_device(
        self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int] | None = None
    ) -> Float32[Tensor, "b h w"]:
        """See `DepthModel.predict`. Raises ValueError unless there are as many seeds as pictures."""
        count = len(images)
        seeds = [0] * count if seeds is None else seeds
        if len(seeds) != count:
            raise RefusedError(f"seeds: found {len(seeds)}, expected one for each of {count} pictures")
        # The alignment of an ensemble is a search that blows rounding up to percents of the range (6 % measured between
        # batches of 1 and 4), so an ensemble is a batch of its own.
        together = count if self.spec.ensemble == 1 else 1
        starts = range(0, count, together)
        maps = [self._predict(images[start : start + together], seeds[start : start + together]) for start in starts]
        return torch.cat(maps).float()

    def _predict(self, images: UInt8[np.ndarray, "b h w 3"], seeds: Sequence[int]) -> Float[Tensor, "b h w"]:
        latents = self.noise(images.shape[1], images.shape[2], seeds)
        output: Any = self._pipeline(
            torch.tensor(images).permute(0, 3, 1, 2),
            num_inference_steps=self.spec.steps,
            ensemble_size=self.spec.ensemble,
            processing_resolution=self.spec.long_side_px or 0,
            batch_size=len(images) * self.spec.ensemble,
            latents=latents,
            output_type="pt",
        )
        return output.prediction[:, 0]

    def noise(self, height: int, width: int, seeds: Sequence[int]) -> Float[Tensor, "members channels h8 w8"]:
        """What the members start from, picture after picture, at an eighth of the size that the network sees.

        Drawn on the CPU, in float32 and for one picture at a time: device, precision and neighbours leave it as it is.
        """
        factor = self._pipeline.vae_scale_factor
        long_px = self.spec.long_side_px or max(height, width)
        sides = [-(-(side * long_px // max(height, width)) // factor) for side in (height, width)]
        shape = (self.spec.ensemble, self._pipeline.vae.config.latent_channels, *sides)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = [torch.randn(shape, generator=generator) for generator in generators]
        self._later_noise = [generator for generator in generators for _ in range(self.spec.ensemble)]
        return torch.cat(drawn).to(self._device, self._dtype)

    def _step(self, step: Any, draws: bool, output: Tensor, time: Tensor, latents: Tensor, *, generator: None) -> Any:
        """A step of the scheduler, in float32. Noise that it draws goes on from where `noise` has left each picture's
        generator: the pipeline takes either latents or generators."""
        done = step(output.float(), time, latents.float(), **({"generator": self._later_noise} if draws else {}))
        done.prev_sample = done.prev_sample.to(latents.dtype)
        return done


def _prediction_type(spec: ModelSpec, folder: Path) -> str:
    """What the pipeline calls the spec's space. Raises ValueError where maps are not affine."""
    said = read_json(folder / "model_index.json")
    if not (said.get("scale_invariant", True) and said.get("shift_invariant", True)):
        raise RefusedError(
            f"{folder}/model_index.json: scale_invariant and shift_invariant must be true for {spec.depth_space}"
        )
    return "disparity" if spec.depth_space == "disparity_affine_invariant" else "depth"


_DDIM, _LCM = "DDIMScheduler", "LCMScheduler"


def _scheduler(folder: Path, steps: int | None) -> Any:
    """The checkpoint's scheduler. Raises RefusedError for one of another kind, and for more steps than it has."""
    import diffusers

    name = read_json(folder / "scheduler/scheduler_config.json").get("_class_name")
    if name not in (_DDIM, _LCM):
        raise RefusedError(f"{folder}/scheduler: found {name}, expected {_DDIM} or {_LCM}, as Marigold is published with")
    scheduler: Any = getattr(diffusers, name).from_pretrained(folder / "scheduler")
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:
        raise RefusedError(f"{folder}/scheduler: steps is {steps}: {error}") from error
    return scheduler


_SPACES: dict[Any, DepthSpace] = {"depth": "depth_affine_invariant", "disparity": "disparity_affine_invariant"}


def _states(folder: Path) -> FamilyStatements:
    path = folder / "model_index.json"
    index = read_json(path)
    kind, said = index.get("prediction_type", "depth"), index.get("default_processing_resolution")
    if kind not in _SPACES:
        raise RefusedError(f"{path}: prediction_type is {kind!r}, expected one of {', '.join(_SPACES)}")
    steps = index.get("default_denoising_steps")
    if steps is not None and (type(steps) is not int or steps < 1):
        raise RefusedError(f"{path}: default_denoising_steps is {steps!r}, expected a number of 1 or more")
    return FamilyStatements(
        depth_spaces=(Statement(value=_SPACES[kind], source=f"{path}, prediction_type {kind}"),) if index else (),
        input_px=training_size(folder) or (pixels(said, f"{path}: default_processing_resolution") if said else None),
        steps=steps,
    )


def _problems(spec: ModelSpec) -> list[str]:
    return [f"input_px is {spec.input_px}, expected a multiple of 8"] if (spec.long_side_px or 0) % 8 else []


FAMILY = Family(recognises=is_marigold, states=_states, load=MarigoldModel, problems=_problems, has_noise=True)
