"""What a checkpoint says of itself: its loader, what its numbers mean, the size it wants, the licence of its weights.

The one place that decides it, for labels, predictions, evaluations and figures alike. A checkpoint's words are, in this order,
the table of known checkpoints (`known`), its `training.json`, its library's own configuration, and the metadata of its model
card. Nothing is guessed: what no word says is None, and two words that differ are an error, naming both and where they stand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from manifests.licences import UNKNOWN
from stages.depth_space import DEPTH_SPACES, DepthSpace
from stages.models.checkpoints import read_json
from stages.models.known import KNOWN, LoaderName

TRAINING, PREPROCESSOR = "training.json", "preprocessor_config.json"
_TABLE = "the table of known checkpoints"
_LARGEST_PX = 8192
_CARD_BYTES = 1 << 16
_MARIGOLD_SPACES: dict[Any, DepthSpace] = {"depth": "depth_affine_invariant", "disparity": "disparity_affine_invariant"}


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A checkpoint's word, and where it stands."""

    value: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Stated:
    """All that a checkpoint says of itself; None where it says nothing."""

    loader: LoaderName
    depth_space: Statement | None = None
    usual_space: DepthSpace | None = None
    """What its family's checkpoints give, where it does not say it itself."""
    licence: Statement | None = None
    input_px: int | tuple[int, int] | None = None
    """The size it was made for: a long side, or height and width as its library's processor reads them."""


def read_stated(checkpoint: str, folder: Path | None, loader: LoaderName | None = None) -> Stated:
    """The words of a checkpoint.

    folder: its files, weights or not; None for a known hub id whose files are not at hand. loader: where it is given, and
    else the table's or the one that the folder is laid out for.
    Raises ValueError for a folder that is no checkpoint, and for words that contradict each other or say nothing known.
    """
    known = KNOWN.get(checkpoint)
    spaces = [Statement(value=known.depth_space, source=_TABLE)] if known else []
    if folder is None:
        assert known, checkpoint
        licence = Statement(value=known.licence, source=_TABLE)
        return Stated(loader=known.loader, depth_space=spaces[0], licence=licence)
    _refuse_other_folders(folder)
    loader = loader or (known.loader if known else _layout(folder))
    training = read_json(folder / TRAINING)
    config = read_json(folder / "config.json") if loader == "transformers" else {}
    index = read_json(folder / "model_index.json") if loader == "marigold" else {}
    spaces += _spaces(folder, training, config, index)
    relative = loader == "transformers" and config.get("model_type") in ("depth_anything", "dpt")
    return Stated(
        loader=loader,
        depth_space=_agreed("depth_space", spaces),
        usual_space="disparity_affine_invariant" if relative else None,
        licence=Statement(value=known.licence, source=_TABLE) if known else read_licence(folder),
        input_px=_size(folder, loader, training, index),
    )


def read_licence(folder: Path) -> Statement | None:
    """The licence that a folder states for its weights, in its training.json or its model card's metadata.

    Raises ValueError for a training.json that cannot be read.
    """
    if (said := read_json(folder / TRAINING).get("licence")) is not None:
        return _known_licence(str(said), folder / TRAINING)
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open("rb") as file:
        text = file.read(_CARD_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = dict(re.findall(r"^(license|license_name):[ \t]*[\"']?([\w.+ -]+?)[\"']?[ \t]*$", front[1] if front else "", re.M))
    licence = found.get("license_name") if found.get("license") == "other" else found.get("license")
    return _known_licence(licence, card) if licence else None


def same_licence(one: str, other: str) -> bool:
    """Whether two names are one licence, however they are written: `Apache-2.0` and `apache 2.0`."""
    return _plain(one) == _plain(other)


def _plain(licence: str) -> str:
    return re.sub(r"[\s_]+", "-", licence.strip().lower())


def _known_licence(licence: str, path: Path) -> Statement | None:
    """`unknown` is no licence: whoever knows it may state it."""
    return None if same_licence(licence, UNKNOWN) else Statement(value=licence.strip(), source=str(path))


def _refuse_other_folders(folder: Path) -> None:
    """Raises ValueError for a folder that is not a checkpoint, saying what it is."""
    if any((folder / name).exists() for name in ("config.json", "unet", "vae")):
        return
    if (folder / "run.json").exists() and (folder / "columns").is_dir():
        what = f"a run of labels, not a checkpoint; train a student on it: python -m pipeline.train --run {folder} --output ..."
    elif (folder / "states").is_dir() or (folder / "dataset.lock.json").exists():
        what = "a training that is not finished: it has no weights yet; the command that began it goes on"
    else:
        what = "no checkpoint: found neither config.json (transformers) nor unet/ and vae/ (diffusers)"
    raise ValueError(f"{folder}: {what}")


def _layout(folder: Path) -> LoaderName:
    """Marigold's pipeline says so in its index; GenPercept has `unet/` and `vae/` alone."""
    if not ((folder / "unet").is_dir() and (folder / "vae").is_dir()):
        return "transformers"
    is_pipeline = "Marigold" in str(read_json(folder / "model_index.json").get("_class_name", ""))
    return "marigold" if is_pipeline else "genpercept"


def _spaces(folder: Path, training: dict[str, Any], config: dict[str, Any], index: dict[str, Any]) -> list[Statement]:
    """Every word of the folder about its depth space."""
    found = []
    if (said := training.get("depth_space")) is not None:
        if said not in DEPTH_SPACES:
            raise ValueError(f"{folder / TRAINING}: depth_space is {said!r}, expected one of {', '.join(DEPTH_SPACES)}")
        found.append(Statement(value=said, source=str(folder / TRAINING)))
    if config.get("depth_estimation_type") == "metric" or config.get("model_type") == "depth_pro":
        found.append(Statement(value="depth_metric", source=f"{folder / 'config.json'}, whose network gives metres"))
    if index:
        path, kind = folder / "model_index.json", index.get("prediction_type", "depth")
        if kind not in _MARIGOLD_SPACES:
            raise ValueError(f"{path}: prediction_type is {kind!r}, expected one of {', '.join(_MARIGOLD_SPACES)}")
        found.append(Statement(value=_MARIGOLD_SPACES[kind], source=f"{path}, prediction_type {kind}"))
    return found


def _agreed(name: str, words: Sequence[Statement]) -> Statement | None:
    for word in words[1:]:
        if word.value != words[0].value:
            first = words[0]
            raise ValueError(
                f"{name}: the checkpoint contradicts itself: {first.value} by {first.source}, {word.value} by {word.source}"
            )
    return words[0] if words else None


def _size(folder: Path, loader: LoaderName, training: dict[str, Any], index: dict[str, Any]) -> int | tuple[int, int] | None:
    """A long side by training.json or Marigold's index, height and width by a processor's `size`."""
    if loader == "transformers":
        processor = read_json(folder / PREPROCESSOR)
        if not processor.get("do_resize", True) or (size := processor.get("size")) is None:
            return None
        where = f"{folder / PREPROCESSOR}: size"
        sides = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
        return cast("tuple[int, int]", tuple(_pixels(side, where) for side in sides))
    if (said := training.get("input_px")) is not None:
        return _pixels(said, f"{folder / TRAINING}: input_px")
    said = index.get("default_processing_resolution")
    return _pixels(said, f"{folder / 'model_index.json'}: default_processing_resolution") if said else None


def _pixels(value: Any, where: str) -> int:
    if type(value) is not int or not 8 <= value <= _LARGEST_PX:
        raise ValueError(f"{where} is {value!r}, expected a side from 8 to {_LARGEST_PX} px")
    return value
