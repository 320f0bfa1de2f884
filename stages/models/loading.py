"""Networks from the folders of two libraries, always with the same precautions: only data is read, by classes that we name.

The libraries are imported when they are needed: each takes seconds, and most processes need one of them or none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from manifests.errors import DistillError, RefusedError
from stages.models.checkpoints import OWN_ATTENTION, complete, require_safetensors
from stages.models.dino_backbone import adapt_config, adapt_network

_LOG = logging.getLogger(__name__)
_NEVER_RUN = {"dpt": "neck.fusion_stage.layers.0.residual_layer1"}
"""By model type, a module that the forward pass of transformers never calls. DPT's first fusion layer has no map to add to its
own, so MiDaS' weights, as `Intel/dpt-large` has them, lack its first residual unit (huggingface/transformers issue 28292)."""


def load_transformers(
    name: str, folder: Path, dtype: torch.dtype, config_name: str = "AutoConfig", *, needed: tuple[str, ...] = ("",)
) -> Any:
    """A network by the name of its class in transformers, or of an auto class, in this precision.

    needed: beginnings of the names of weights that must be there; others are made anew afterwards. A module that is never run
    (`_NEVER_RUN`) may lack all of its weights, is zeroed then, and a warning is logged. Raises FileNotFoundError or ValueError
    for missing, pickled or incomplete weights, and for a configuration that names code or weights elsewhere.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # one for each checkpoint, for a second at most
    require_safetensors(folder)
    # Read first, because only then does the explicit attention win over the file's, which could name code. Without dtype,
    # transformers keeps the precision in which the weights happen to be stored.
    config = read_config(folder, config_name)
    adapt_config(config, folder)
    with _in_words(folder):
        network, report = getattr(transformers, name).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=OWN_ATTENTION,
        )
    gaps = {kind: [name for name in map(str, names) if name.startswith(needed)] for kind, names in report.items()}
    if never_run := _NEVER_RUN.get(config.model_type):
        gaps["missing_keys"] = _zeroed(network, never_run, gaps["missing_keys"], folder)
    return adapt_network(complete((network, gaps), folder))


@torch.no_grad()
def _zeroed(network: Any, module: str, missing: list[str], folder: Path) -> list[str]:
    """The missing names without those of this module, which is zeroed where all of its weights are missing."""
    weights = {f"{module}.{name}": tensor for name, tensor in network.get_submodule(module).state_dict().items()}
    if not weights.keys() <= set(missing):
        return missing
    for tensor in weights.values():
        tensor.zero_()
    _LOG.warning("%s: has no weights for %s, which the network never uses: zeros were taken", folder, module)
    return [name for name in missing if name not in weights]


def load_diffusers(name: str, folder: Path, dtype: torch.dtype, device: str) -> Any:
    """A UNet or VAE for inference, by the name of its class in diffusers. Raises as `load_transformers` does."""
    import diffusers

    require_safetensors(folder)
    # low_cpu_mem_usage would want the accelerate package, for networks that fit into memory many times over.
    with _in_words(folder):
        loaded = getattr(diffusers, name).from_pretrained(
            folder, torch_dtype=dtype, output_loading_info=True, low_cpu_mem_usage=False, use_safetensors=True
        )
    return complete(loaded, folder).to(device).eval()


def read_config(folder: Path, name: str = "AutoConfig") -> Any:
    """A network's configuration by the name of its class in transformers. Raises RefusedError for one that it cannot read."""
    import transformers

    with _in_words(folder):
        return getattr(transformers, name).from_pretrained(folder, trust_remote_code=False)


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    """Names the folder in whatever a library raises for a checkpoint that is not as it expects."""
    try:
        yield
    except (DistillError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise RefusedError(f"{folder}: cannot be loaded: {type(error).__name__}: {error}") from error
