"""The student network: from a checkpoint, through pictures of the dataset, back to a checkpoint others can load.

Depth Anything and DPT of the transformers library, DPT with any encoder that library has for it (plain ViT and hybrid, as in
MiDaS 3.0; BEiT and Swin v2, as in MiDaS 3.1; DINOv2), both with DINOv3 (ViT) and DINOv2 with registers too, and an encoder of
DINO alone under a new neck and head. What is saved is loaded by `load_model` here, and by `transformers.pipeline` like the
checkpoint that training began with, but for the two that the library cannot run (`dino_backbone`). Refused with a reason: other
families and metric checkpoints, whose output is no free disparity; hub ids without a commit; checkpoints that lack a weight.
Nothing from a checkpoint is ever executed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import AutoModelForDepthEstimation, PreTrainedModel

from manifests.commit import fsync_path
from manifests.errors import RefusedError
from stages.models.checkpoints import (
    OWN_ATTENTION,
    checkpoint_folder,
    is_hub_id,
    read_image_statistics,
    read_json,
    refuse_foreign,
    require_safetensors,
)
from stages.models.dino_backbone import BARE_ENCODERS, adapt_config, adapt_network, depth_config_of
from stages.models.known import known_of
from stages.models.loading import load_transformers, read_config
from stages.models.transformers_models import METRIC_FAMILIES

StudentStart = Literal["checkpoint", "fresh-head", "scratch"]

PREPROCESSOR, WEIGHTS, TRAINING, CARD = "preprocessor_config.json", "model.safetensors", "training.json", "README.md"
FAMILIES = ("depth_anything", "dpt")
_ENCODERS = ("backbone.", "dpt.")  # Depth Anything and DPT with a backbone; DPT without
_ALIVE = 0.3  # first value of a map from a new head, which ends in a ReLU


@dataclass(frozen=True, kw_only=True)
class StudentOutput:
    """One forward pass."""

    disparity: Float[Tensor, "b h w"]
    """In the labels' space up to scale and shift; float32."""
    tokens: Float[Tensor, "b n d"] | None
    """The encoder's last feature map, after its norm and without class and register tokens, row by row; float32."""
    grid: tuple[int, int]
    """Rows and columns of these n tokens."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """A network in float32 with what belongs to it: its input's statistics per channel, and its image processor's file."""

    network: PreTrainedModel
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocessor: str
    patch_px: int
    compile: bool = False

    @property
    def encoder(self) -> Any:
        """The part of the network before neck and head."""
        return encoder_of(self.network)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of the encoder and those of the decoder."""
        named = list(self.network.named_parameters())
        return tuple([p for name, p in named if name.startswith(_ENCODERS) is encoder] for encoder in (True, False))  # type: ignore

    @property
    def takes_any_aspect(self) -> bool:
        """Whether its encoder is known to take pictures of any sides that its patches tile, not squares only."""
        backbone = getattr(self.network.config, "backbone_config", None)
        kind = self.network.config if backbone is None else backbone
        return kind.model_type in BARE_ENCODERS and not getattr(self.network.config, "is_hybrid", False)

    def forward(self, images: UInt8[Tensor, "b 3 h w"], *, bf16: bool = False, with_tokens: bool = False) -> StudentOutput:
        """The student's map of each picture and, with tokens, what its encoder handed on in the same pass.

        Sides that its patches do not tile are resized, bilinearly, to the nearest that they do, and the map is resized back.
        bf16 speeds up all but the head: eight bits of mantissa in the output would be steps in every slope.
        """
        pixels, (rows, columns) = tiled(prepare_images(images, self.mean, self.std), self.patch_px)
        with torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext():
            output = self._run(pixel_values=pixels).predicted_depth
        tokens, grid = patch_tokens(self.encoder.final_map, rows, columns)
        self.encoder.final_map = None  # else this step's graph would live until the next
        if output.shape[-2:] != images.shape[-2:]:
            size = (images.shape[-2], images.shape[-1])
            output = F.interpolate(output[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
        return StudentOutput(disparity=output.float(), tokens=tokens if with_tokens else None, grid=grid)

    @cached_property
    def _run(self) -> Callable[..., Any]:
        return torch.compile(self.network) if self.compile else self.network


def load_student(
    checkpoint: str,
    context_px: int,
    *,
    revision: str | None = None,
    start: StudentStart = "checkpoint",
    seed: int = 0,
    device: str = "cpu",
    activation_checkpointing: bool = False,
    compile: bool = False,
) -> Student:
    """A folder or a hub id, in float32 whatever precision it is stored in, and in eval mode.

    start: which weights are new, see `load_network`. Activation checkpointing works in train mode, as the library has it.
    Raises FileNotFoundError without a checkpoint, and ValueError for one that cannot be a student on this context grid.
    """
    folder = pinned_folder(checkpoint, revision)
    _refuse_other_families(read_json(folder / "config.json").get("model_type"), start, folder)
    mean, std = read_image_statistics(folder)
    network: Any = load_network(folder, start=start, seed=seed)
    _refuse_unfit(network.config, context_px, folder)
    network.head.forward = MethodType(_forward_in_float32, network.head)
    encoder_of(network).register_forward_hook(_keep_final_map)
    if activation_checkpointing:
        # The newer name came within transformers 5.
        enable = getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    return Student(
        network=network.to(device),
        mean=tuple(mean),
        std=tuple(std),
        preprocessor=_preprocessor_of(folder, network.config, context_px),
        patch_px=patch_px_of(network.config),
        compile=compile,
    )


def pinned_folder(checkpoint: str, revision: str | None = None) -> Path:
    """The checkpoint's local folder; a hub id at a full commit: the given one, or the one it is known here with.

    Raises ValueError for a hub id without one, because a branch moves, and FileNotFoundError for no checkpoint at all.
    """
    if revision is None and (known := known_of(checkpoint)):
        revision = known.revision
    if is_hub_id(checkpoint) and not re.fullmatch("[0-9a-f]{40}", revision or ""):
        raise RefusedError(
            f"revision is {revision!r}, expected the full commit of {checkpoint}, 40 hexadecimal digits, because a branch "
            "moves; take it from the commits on the checkpoint's hub page, or name a local folder"
        )
    return checkpoint_folder(checkpoint, revision)


def load_network(folder: Path, *, start: StudentStart = "checkpoint", seed: int = 0) -> PreTrainedModel:
    """A depth network in float32. `fresh-head` takes only the encoder's weights, `scratch` none: then none need be there.
    Both take a folder that has no more than an encoder too (`depth_config_of`).

    New encoders start as the library starts them. New necks and heads start as PyTorch starts each layer, like those of Depth
    Anything v2's own code; the library's deviation of 0.02 in every layer leaves a small decoder's map constant in float32. The
    last bias is positive, because a ReLU follows. Raises ValueError for another family or for a weight that is not there.
    """
    if start == "scratch":
        refuse_foreign(read_json(folder / "config.json"), f"{folder}/config.json")
    else:
        require_safetensors(folder)  # before a library reads its configuration
    config = read_config(folder)
    _refuse_other_families(config.model_type, start, folder)
    is_bare = config.model_type in BARE_ENCODERS
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if is_bare or start == "scratch":
            network = _new_network(depth_config_of(config) if is_bare else config, folder)
        else:
            network = load_transformers(
                "AutoModelForDepthEstimation", folder, torch.float32, needed=_ENCODERS if start == "fresh-head" else ("",)
            )
        if is_bare and start == "fresh-head":
            network.backbone.load_state_dict(load_transformers("AutoModel", folder, torch.float32).state_dict())
        if start != "checkpoint":
            _redraw_decoder(network)
    return network


def _new_network(config: Any, folder: Path) -> Any:
    adapt_config(config, folder)
    network = AutoModelForDepthEstimation.from_config(
        config, dtype=torch.float32, attn_implementation=OWN_ATTENTION, trust_remote_code=False
    )
    return adapt_network(network.eval())


def encoder_of(network: Any) -> Any:
    """The part of a depth network before neck and head."""
    return network.dpt if getattr(network, "backbone", None) is None else network.backbone


def patch_px_of(config: Any) -> int:
    """Side of the square in the picture behind each of the encoder's last tokens. Raises ValueError.

    A multiple of it is what the encoder of a network of this configuration takes without padding the picture or cutting it.
    """
    backbone = None if getattr(config, "is_hybrid", False) else getattr(config, "backbone_config", None)
    patch_px = getattr(backbone or config, "patch_size", None)
    if not isinstance(patch_px, int):
        raise RefusedError(f"{config.model_type}: patch_size is {patch_px}, expected one number")
    return patch_px * 2 ** (len(getattr(backbone or config, "depths", (1,))) - 1)  # Swin merges 2 x 2 between its stages


def final_map(output: Any) -> Tensor:
    """What an encoder hands on last: a backbone's last feature map, or a whole model's last hidden state; after its norm."""
    maps = getattr(output, "feature_maps", None)
    return output.last_hidden_state if maps is None else maps[-1]


def tiled(
    pixels: Float[Tensor, "b 3 h w"], patch_px: int, at_least: tuple[int, int] = (1, 1)
) -> tuple[Float[Tensor, "b 3 h2 w2"], tuple[int, int]]:
    """Pictures at the nearest size that patches tile, resized bilinearly where need be; and the patches' rows and columns.

    at_least: rows and columns, which pictures with fewer patches are enlarged to.
    """
    rows, columns = (max(round(length / patch_px), 1) for length in pixels.shape[-2:])
    if rows * columns < at_least[0] * at_least[1]:
        rows, columns = at_least
    size = (rows * patch_px, columns * patch_px)
    if size != tuple(pixels.shape[-2:]):
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
    return pixels, (rows, columns)


def patch_tokens(final_map: Tensor, rows: int, columns: int) -> tuple[Float[Tensor, "b n d"], tuple[int, int]]:
    """Tokens of the patches alone, row by row, in float32, and the rows and columns of their grid.

    final_map: a map (b, d, rows, columns), whose own size counts, or tokens (b, prefix + n, d) with others before the patches'.
    """
    if final_map.ndim == 4:
        return final_map.flatten(2).transpose(1, 2).float(), (final_map.shape[-2], final_map.shape[-1])
    return final_map[:, -rows * columns :].float(), (rows, columns)


def prepare_images(
    images: UInt8[Tensor, "b 3 h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "b 3 h w"]:
    """(value / 255 - mean) / std for each channel; plain numbers, because a tensor of them would wait for the device."""
    channels = zip((images.float() / 255).unbind(1), mean, std, strict=True)
    return torch.stack([(channel - shift) / spread for channel, shift, spread in channels], 1)


def save_student(
    student: Student,
    folder: Path,
    training: Mapping[str, Any],
    *,
    card: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write config.json, preprocessor_config.json, training.json, a README.md if given and, last, model.safetensors.

    weights: others than the network's own, by its names; what is not among them is the network's. Weights that are in the
    folder are complete, and everything beside them is theirs; all is on disk when this returns. Raises ValueError for weights
    the network does not have.
    """
    exported = student.network.state_dict()
    if strange := sorted(set(weights or ()) - set(exported)):
        raise RefusedError(f"{len(strange)} weights are none of the student's: {', '.join(strange[:5])}")
    aside = folder / ".saving"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    student.network.save_pretrained(aside, state_dict=exported | dict(weights or {}), max_shard_size="1TB")
    (aside / PREPROCESSOR).write_text(student.preprocessor, "utf-8")
    (aside / TRAINING).write_text(json.dumps(training, sort_keys=True, indent=2) + "\n", "utf-8")
    if card is not None:
        (aside / CARD).write_text(card, "utf-8")
    mode = (aside / TRAINING).stat().st_mode
    for path in sorted(aside.iterdir(), key=lambda path: path.name == WEIGHTS):
        path.chmod(mode)  # safetensors makes files that only their owner can read
        fsync_path(path)
        if path.name == WEIGHTS:
            fsync_path(folder)
        path.replace(folder / path.name)
    aside.rmdir()
    fsync_path(folder)
    fsync_path(folder.absolute().parent)


def _refuse_other_families(model_type: str | None, start: StudentStart, folder: Path) -> None:
    """Raises ValueError for a network that is no student; it may well be a teacher. No type: the library says why."""
    if model_type in (None, *FAMILIES) or (model_type in BARE_ENCODERS and start != "checkpoint"):
        return
    if model_type in BARE_ENCODERS:
        raise RefusedError(
            f"{folder}/config.json: model_type is {model_type!r}, an encoder alone; --fresh-head draws a neck and a head for it"
        )
    metres = "; it gives metres, and a student's disparity has no fixed range" if model_type in METRIC_FAMILIES else ""
    raise RefusedError(
        f"{folder}/config.json: model_type is {model_type!r}{metres}; expected one of {', '.join(FAMILIES)} for a "
        "student, such as depth-anything/Depth-Anything-V2-Small-hf"
    )


def _refuse_unfit(config: Any, context_px: int, folder: Path) -> None:
    if getattr(config, "depth_estimation_type", "relative") == "metric":
        raise RefusedError(
            f"{folder}/config.json: depth_estimation_type is 'metric', whose head is a sigmoid times max_depth; expected "
            "'relative', as a student's disparity has no fixed range. Take the relative checkpoint of the same family"
        )
    patch_px = patch_px_of(config)
    if context_px % patch_px:
        raise RefusedError(
            f"{folder}: patches of {patch_px} px do not tile a context of {context_px} px; label with a context_px that "
            f"is a multiple, such as {max(round(context_px / patch_px), 1) * patch_px}"
        )
    if getattr(config, "is_hybrid", False) and context_px != config.image_size:
        raise RefusedError(f"{folder}: a hybrid DPT takes {config.image_size} px only; label with that context_px")


def _preprocessor_of(folder: Path, config: Any, context_px: int) -> str:
    """The checkpoint's own file; for an encoder alone, whose file is not of depth, one as Depth Anything v2 has it."""
    if read_json(folder / "config.json").get("model_type") not in BARE_ENCODERS:
        return (folder / PREPROCESSOR).read_text("utf-8")
    mean, std = read_image_statistics(folder)
    size = {"height": context_px, "width": context_px}
    processor = {"image_processor_type": "DPTImageProcessor", "do_resize": True, "size": size, "keep_aspect_ratio": True}
    processor |= {"ensure_multiple_of": patch_px_of(config), "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255}
    processor |= {"do_normalize": True, "image_mean": mean, "image_std": std, "do_pad": False}
    return json.dumps(processor, indent=2) + "\n"


def _redraw_decoder(network: Any) -> None:
    for module in [*network.neck.modules(), *network.head.modules()]:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    last = [module for module in network.head.modules() if isinstance(module, nn.Conv2d)][-1]
    nn.init.constant_(last.get_parameter("bias"), _ALIVE)


def _keep_final_map(encoder: Any, _: Any, output: Any) -> None:
    """A hook, which leaves the map on the encoder itself: that survives `torch.compile`, and a copy has its own."""
    encoder.final_map = final_map(output)


def _forward_in_float32(head: Any, features: list[Tensor], *sizes: int) -> Tensor:
    """Autocast stops at the head. Bound as a method, so that a copied network runs its own head."""
    with torch.autocast(features[0].device.type, enabled=False):
        return type(head).forward(head, [feature.float() for feature in features], *sizes)
