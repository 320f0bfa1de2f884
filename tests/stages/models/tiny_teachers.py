"""Small random networks of every family of teachers, saved as the published ones are: by their own library, in its layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, MarigoldDepthPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BeitConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    DepthProConfig,
    DepthProForDepthEstimation,
    DPTConfig,
    DPTForDepthEstimation,
    GLPNConfig,
    GLPNForDepthEstimation,
    Tipsv2DptConfig,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
)
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
from transformers.models.glpn.image_processing_pil_glpn import GLPNImageProcessorPil
from transformers.models.tipsv2.configuration_tipsv2 import Tipsv2VisionConfig
from transformers.models.tipsv2_dpt.modeling_tipsv2_dpt import Tipsv2DptForDepthEstimation
from transformers.models.zoedepth.image_processing_pil_zoedepth import ZoeDepthImageProcessorPil

from stages.demo_networks import IMAGENET_MEAN, IMAGENET_STD, build_depth_anything

TEXT_WIDTH = 16
DEPTH_PRO_PX = 64


def save_dpt(folder: Path) -> None:
    """DPT as `Intel/dpt-large`: a plain ViT with patches of 16, mean and deviation 0.5, pictures squeezed into a square."""
    config = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
    )
    model = DPTForDepthEstimation(config)
    start_alive(model)
    model.save_pretrained(folder)
    DPTImageProcessorPil(size={"height": 48, "width": 48}, resample=2).save_pretrained(folder)


def save_depth_anything(folder: Path, *, metric: bool = False, **processor: Any) -> None:
    """Depth Anything v2 with patches of 12; the metric variant ends in a sigmoid times the largest depth."""
    model = build_depth_anything(hidden=24, layers=4, heads=2, patch_px=12, fusion=16, image_px=48)
    if metric:
        model.config.depth_estimation_type, model.config.max_depth = "metric", 20
    start_alive(model)
    model.save_pretrained(folder)
    settings: dict[str, Any] = {"keep_aspect_ratio": True, "ensure_multiple_of": 12, "image_mean": IMAGENET_MEAN}
    settings |= {"image_std": IMAGENET_STD, "size": {"height": 48, "width": 48}}
    DPTImageProcessorPil(**(settings | processor)).save_pretrained(folder)


def save_depth_pro(folder: Path, *, field_of_view: bool = True) -> None:
    """Depth Pro with its three encoders; the processor's file as `apple/DepthPro-hf` has it, but for the size."""
    encoder = {"model_type": "dinov2", "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "patch_size": 4}
    config = DepthProConfig(
        patch_size=16,
        fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[10, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.2],
        scaled_images_feature_dims=[12, 12],
        use_fov_model=field_of_view,
        image_model_config=dict(encoder),
        patch_model_config=dict(encoder),
        fov_model_config=dict(encoder),
    )
    model = DepthProForDepthEstimation(config)
    start_alive(model)
    if model.fov_model:
        angle: Any = model.fov_model.head.layers[-1]
        nn.init.normal_(angle.weight, std=0.02)
        nn.init.constant_(angle.bias, 60)  # degrees
    model.save_pretrained(folder)
    processor = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "DepthProImageProcessorFast",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": DEPTH_PRO_PX, "width": DEPTH_PRO_PX},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def save_zoedepth(folder: Path, *, domains: int = 1) -> None:
    """ZoeDepth as `Intel/zoedepth-nyu`, or with two domains as `Intel/zoedepth-nyu-kitti`; the processor's file as theirs."""
    stages: Any = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    beit = BeitConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        use_relative_position_bias=True,
        reshape_hidden_states=False,
        **stages,
    )
    bins: list[dict[str, Any]] = [{"name": "nyu", "n_bins": 16, "min_depth": 1e-3, "max_depth": 10.0}]
    more: dict[str, Any] = {}
    if domains == 2:
        bins.append({"name": "kitti", "n_bins": 16, "min_depth": 1e-3, "max_depth": 80.0})
        more = {"num_patch_transformer_layers": 4, "patch_transformer_hidden_size": 128}
        more |= {"patch_transformer_intermediate_size": 64, "patch_transformer_num_attention_heads": 2}
    config = ZoeDepthConfig(
        backbone_config=beit,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        num_relative_features=8,
        bottleneck_features=16,
        bin_embedding_dim=16,
        num_attractors=[4, 4, 2, 1] if domains == 1 else [16, 8, 4, 1],
        bin_configurations=bins,
        **more,
    )
    model = ZoeDepthForDepthEstimation(config)
    _start_varied(model)
    model.save_pretrained(folder)
    size = {"height": 64, "width": 96}
    ZoeDepthImageProcessorPil(size=size, ensure_multiple_of=32).save_pretrained(folder)


def save_glpn(folder: Path) -> None:
    """GLPN as `vinvino02/glpn-nyu`, whose map ends in a sigmoid times 10 m; the processor's file as the library writes it."""
    config = GLPNConfig(
        depths=[1] * 4,
        hidden_sizes=[8, 16, 16, 32],
        num_attention_heads=[1, 2, 2, 2],
        mlp_ratios=[2] * 4,
        decoder_hidden_size=16,
        max_depth=10,
    )
    model = GLPNForDepthEstimation(config)
    _start_varied(model)
    model.save_pretrained(folder)
    GLPNImageProcessorPil().save_pretrained(folder)


def save_tipsv2(folder: Path) -> None:
    """TIPSv2 with its depth head, in the library's layout; the processor's class wants torchvision, and this is its file."""
    stages: Any = {"out_indices": [1, 2, 3, 4]}
    vision = Tipsv2VisionConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=56,
        patch_size=14,
        reshape_hidden_states=False,
        **stages,
    )
    config = Tipsv2DptConfig(backbone_config=vision, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, num_depth_bins=32)
    model = Tipsv2DptForDepthEstimation(config)
    _start_varied(model)
    model.save_pretrained(folder)
    processor = {
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "Tipsv2DptImageProcessor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 56, "width": 56},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def save_marigold(folder: Path) -> None:
    """Marigold: UNet, VAE (8 pixels to a latent), DDIM scheduler, CLIP text encoder and tokenizer, by the pipeline itself."""
    scheduler: Any = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        set_alpha_to_one=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    pipeline = MarigoldDepthPipeline(
        unet=_unet(in_channels=8),
        vae=_vae(),
        scheduler=scheduler,
        text_encoder=_text_encoder(),
        tokenizer=_tokenizer(folder / "tokenizer"),
        prediction_type="depth",
        default_denoising_steps=4,
        default_processing_resolution=768,
    )
    pipeline.save_pretrained(folder)


def save_marigold_version(folder: Path, version: str) -> None:
    """Marigold with the index and the scheduler of `v1-0`, of `v1-1` or of `lcm-v1-0`, as these are published."""
    save_marigold(folder)
    steps, class_name = {"v1-0": 10, "v1-1": 4, "lcm-v1-0": 1}[version], "MarigoldPipeline"
    index = json.loads((folder / "model_index.json").read_text())
    scheduler: dict[str, Any] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    if version == "v1-0":
        for name in ("timestep_spacing", "rescale_betas_zero_snr"):
            del scheduler[name]
    elif version == "lcm-v1-0":
        del index["prediction_type"]
        index["scheduler"] = ["diffusers", "LCMScheduler"]
        more = {"original_inference_steps": 50, "timestep_scaling": 10.0, "timestep_spacing": "leading", "steps_offset": 1}
        scheduler |= {"_class_name": "LCMScheduler", "rescale_betas_zero_snr": False, **more}
    else:
        class_name = "MarigoldDepthPipeline"
    index |= {"_class_name": class_name, "default_denoising_steps": steps}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))


def save_genpercept(folder: Path, *, text: str) -> None:
    """GenPercept with one of its empty texts: `77` in .npy, `2` in .safetensors, or `encoder`, as v2's repositories have it."""
    _unet(in_channels=4).save_pretrained(folder / "unet")
    _vae().save_pretrained(folder / "vae")
    if text == "77":
        np.save(folder / "empty_text_embed.npy", torch.randn(77, TEXT_WIDTH).numpy())
    elif text == "2":
        save_file({"empty_text_embedding": torch.randn(1, 2, TEXT_WIDTH)}, folder / "empty_text_embedding.safetensors")
    else:
        _text_encoder().save_pretrained(folder / "text_encoder")
        _tokenizer(folder / "tokenizer").save_pretrained(folder / "tokenizer")


def save_lotus(folder: Path, *, in_channels: int = 4) -> None:
    """Lotus-D as `jingheya/lotus-depth-d-v2-0-disparity`; Lotus-G's UNet has 8 channels, for the noise."""
    _unet(in_channels=in_channels, class_embed_type="projection", projection_class_embeddings_input_dim=4).save_pretrained(
        folder / "unet"
    )
    save_stable_diffusion_parts(folder)
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "prediction_type": "epsilon"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    index = {
        "_class_name": "DirectRegressionPipeline",
        "_diffusers_version": "0.28.0.dev0",
        "_name_or_path": "stabilityai/stable-diffusion-2-base",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\npipeline_tag: depth-estimation\n---\n# Lotus\n")


def save_genpercept_unets(folder: Path, *, config: bool = True, suffix: str = "safetensors") -> None:
    """GenPercept's repository of UNets, as `guangkaixu/genpercept-models`: flat folders beside an index and a licence.

    config: they come with their configuration. suffix: `bin` is a safetensors file by the name of a pickle.
    """
    for name in ("unet_depth_v1", "unet_disparity_v2"):
        _unet(in_channels=4).save_pretrained(folder / name)
        if not config:
            (folder / name / "config.json").unlink()
        (folder / name / "diffusion_pytorch_model.safetensors").rename(folder / name / f"diffusion_pytorch_model.{suffix}")
    parts = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "GenPerceptPipeline", **parts}))
    (folder / "LICENSE.txt").write_text("BSD 2-Clause License\n")


def save_stable_diffusion(folder: Path, *, in_channels: int = 4) -> None:
    """Stable Diffusion 2.1 as a base is fetched: without the weights of its UNet. Marigold's configuration has 8 channels."""
    _unet(in_channels=in_channels).save_config(folder / "unet")
    save_stable_diffusion_parts(folder)


def save_stable_diffusion_parts(folder: Path) -> None:
    """`vae/`, `text_encoder/` and `tokenizer/`, file by file as Stable Diffusion 2 has them."""
    _vae().save_pretrained(folder / "vae")
    _text_encoder().save_pretrained(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    words = ["!", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
    (tokenizer / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": words[3], "eos_token": words[4], "pad_token": "!", "unk_token": words[4]}
    (tokenizer / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))


def _unet(*, in_channels: int, **more: Any) -> Any:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=4,
        **more,
    )


def _vae() -> Any:
    blocks: Any = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    channels: Any = (4, 4, 8, 8)
    return AutoencoderKL(
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )


def _text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=5,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=3,
        eos_token_id=4,
    )
    return CLIPTextModel(config)


def _tokenizer(folder: Path) -> CLIPTokenizer:
    folder.mkdir(parents=True)
    words = ["a</w>", "b</w>", "c</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def _start_varied(model: Any) -> None:
    """Weights large enough that the picture shows in the map: else tests of values pass on any."""
    weighted = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    for module in weighted:
        nn.init.kaiming_normal_(module.weight, a=1)


def start_alive(model: Any) -> None:
    """Varied, and a head that is not dead."""
    _start_varied(model)
    last: Any = [module for module in model.head.modules() if isinstance(module, nn.Conv2d)][-1]
    with torch.no_grad():
        nn.init.normal_(last.weight, std=0.02)
        nn.init.constant_(last.bias, 1)
