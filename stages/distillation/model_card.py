"""The README.md of a trained student: what it is, what it was made from and under which licences, and how it was trained.

A model card as the hub reads it, with metadata in YAML at its top. It states what it is given and nothing else: results stay
empty until an evaluation fills them in.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from manifests.licences import UNKNOWN, licence_class, most_restrictive
from manifests.tables import markdown_table, markdown_text
from stages.depth_space import DepthSpace
from stages.models.checkpoints import is_hub_id

RESULTS_START, RESULTS_END = "<!-- results -->", "<!-- /results -->"
_RESULTS = re.compile(f"{re.escape(RESULTS_START)}.*?{re.escape(RESULTS_END)}", re.DOTALL)

# The hub's identifiers of the licences that `manifests.licences` knows; all others are `other` there.
_HUB_LICENCES = re.compile(
    r"unknown|apache-2\.0|mit|bsd-[23]-clause|isc|zlib|unlicense|cc0-1\.0|cc-by-(2\.0|2\.5|3\.0|4\.0)|cc-by-sa-[34]\.0|"
    r"cc-by-nc(-sa)?-[234]\.0|cc-by-nc-nd-[34]\.0|a?gpl-3\.0|gpl-2\.0|lgpl-(2\.1|3\.0)|mpl-2\.0|openrail(\+\+)?|"
    r"(bigscience|creativeml)-openrail-m"
)
CONSEQUENCES = {
    UNKNOWN: "Their terms are unknown: find them out before you use or pass on these weights.",
    "non-commercial": "Treat these weights as excluded from commercial use too, unless the owners of those tell you otherwise.",
    "restricted in use or copyleft": "Their conditions on use or on derived works may bind these weights and what is made from "
    "them: read them, and pass them on.",
    "permissive": "They allow commercial use; keep their notices.",
}
"""What follows for a student from the class of the licence that binds it most (see `manifests.licences`)."""
_NEW_WEIGHTS = {
    "checkpoint": "all weights start from it",
    "fresh-head": "its encoder, with a new neck and head",
    "scratch": "its architecture alone, with new weights",
}
_MEANING: Mapping[DepthSpace, str] = {
    "disparity_affine_invariant": "affine-invariant disparity: near is large, up to a positive scale and a shift",
    "depth_affine_invariant": "affine-invariant depth: near is small, up to a positive scale and a shift",
    "disparity_metric": "disparity (1/m): near is large; the loss may leave its scale and shift free",
    "depth_metric": "depth (m): near is small; the loss may leave its scale and shift free",
}


@dataclass(frozen=True, kw_only=True)
class CardTeacher:
    """One teacher whose labels the student learned from."""

    name: str
    checkpoint: str
    """A folder, or a hub id."""
    revision: str | None
    licence: str | None
    """Of its weights; None where none is stated, which counts as unknown."""
    depth_space: DepthSpace


@dataclass(frozen=True, kw_only=True)
class CardContent:
    """Everything the card says."""

    name: str
    student: str
    """Checkpoint the student began with: a folder, or a hub id."""
    student_revision: str | None = None
    student_licence: str | None = None
    """Of that checkpoint's weights; not asked for where `start` is scratch."""
    start: str = "checkpoint"
    """`checkpoint`, `fresh-head` or `scratch`."""
    depth_space: DepthSpace = "disparity_affine_invariant"
    """What the student's numbers mean."""
    runs_in_library: bool = True
    """Whether transformers alone can run it."""
    feature_encoder: str | None = None
    """Checkpoint of the frozen encoder that L_feat held the student to; None where it was the student's own, or none."""
    feature_revision: str | None = None
    feature_licence: str | None = None
    teachers: Sequence[CardTeacher]
    sources: Sequence[str]
    """Names of the sources of photographs."""
    images: int
    unused: int
    """Photographs of these sources that were rejected, or not labelled by all teachers."""
    contexts: int
    """Views of the photographs that the student was shown."""
    training: Mapping[str, object]
    """The configuration, by setting."""
    metrics: Mapping[str, object] = field(default_factory=dict)
    """Of the training's own record, such as the loss terms: means over its last steps."""
    licence_link: str | None = None
    """Where a licence that the hub does not know can be read."""


def model_card(content: CardContent) -> str:
    """The card's text."""
    sections = [
        f"# {markdown_text(content.name)}",
        _introduction(content),
        "## How to use\n\n" + _usage(content),
        "## What it was made from\n\n" + _origin(content),
        "## Licences\n\n" + _licences(content),
        "## Training\n\n" + _table(("setting", "value"), content.training.items()),
        "### At its end\n\n" + _table(("mean of the last steps", ""), content.metrics.items()) if content.metrics else "",
        f"## Evaluation\n\n{RESULTS_START}\nNot evaluated yet.\n{RESULTS_END}",
    ]
    return f"---\n{_metadata(content).to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def replace_results(text: str, markdown: str, name: str, results: Sequence[EvalResult]) -> str:
    """The card with this text between its results' markers, and with these results in the `model-index` of its metadata.

    results: one or more, all with `list_sha256` among the dataset's arguments. What is in the index with that is of an earlier
    evaluation and goes, all else stays. name: of the model, where the index has none. The metadata is written anew: it says the
    same, but comments in it are lost.
    Raises ValueError without exactly one pair of markers, and for metadata that cannot be read.
    """
    if not text.count(RESULTS_START) == text.count(RESULTS_END) == len(_RESULTS.findall(text)) == 1:
        raise ValueError(
            f"model card: found no single pair of the markers {RESULTS_START} and {RESULTS_END}, expected one; put it around "
            "the place of the results"
        )
    text = _RESULTS.sub(lambda _: f"{RESULTS_START}\n{markdown.strip()}\n{RESULTS_END}", text)
    try:
        card = ModelCard(text)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:  # a model-index of any shape
        raise ValueError(
            f"model card: its metadata cannot be read: {' '.join(str(error).split())}; expected YAML as the hub reads it, "
            "between two lines of ---, at the top; mend or remove it"
        ) from error
    others = [result for result in card.data.get("eval_results", ()) if "list_sha256" not in (result.dataset_args or {})]
    card.data["eval_results"] = [*others, *results]
    card.data["model_name"] = card.data.get("model_name", name)
    return card.content


def _metadata(content: CardContent) -> ModelCardData:
    strictest = " and ".join(most_restrictive(set(_origins(content)))).lower()
    identifier = re.sub(r"[^a-z0-9.+]+", "-", strictest).strip("-")
    known = identifier if _HUB_LICENCES.fullmatch(identifier) else None
    return ModelCardData(
        base_model=content.student if _is_repository(content.student) and content.start != "scratch" else None,
        library_name="transformers" if content.runs_in_library else None,
        license=known or "other",
        license_name=None if known else identifier,
        license_link=None if known else content.licence_link,
        pipeline_tag="depth-estimation",
        tags=["depth-estimation", "monocular-depth", "distillation"],
    )


def _introduction(content: CardContent) -> str:
    return (
        "A network for depth from a single photograph, distilled from pseudo-labels with the method of *Distill Any Depth* "
        f"(arXiv 2502.19204). It gives {_MEANING[content.depth_space]}."
    )


def _usage(content: CardContent) -> str:
    if not content.runs_in_library:
        return f"""\
**The `transformers` library alone cannot run this network**: the neck cuts off the first token of each map, and this backbone
hands on no class token there as DINOv2 does. The project that trained it puts it there. With that installed, in this folder;
elsewhere, with its path or its name on the hub in place of `.`:

    python -m pipeline.predict --model . photo.jpg --output maps

```python
import numpy as np
from PIL import Image
from stages.models.find import find_model

model = find_model(".").load()
picture = np.asarray(Image.open("photo.jpg").convert("RGB"))
depth = model.predict(picture[None])[0]  # float32, at the photograph's size; {content.depth_space}
```"""
    return f"""\
In this folder; elsewhere, with its path or its name on the hub in place of `.`:

```python
from transformers import pipeline

estimate = pipeline("depth-estimation", model=".")
depth = estimate("photo.jpg")["predicted_depth"]  # float32, at the photograph's size; {content.depth_space}
```"""


def _is_repository(checkpoint: str) -> bool:
    """The hub knows a base model by its repository, not by a folder in one."""
    return is_hub_id(checkpoint) and checkpoint.count("/") == 1


def _origin(content: CardContent) -> str:
    start = f"Student: {_checkpoint(content.student, content.student_revision)}, {_NEW_WEIGHTS[content.start]}."
    teachers = _table(
        ("teacher", "checkpoint", "revision", "licence of its weights", "its labels"),
        [(t.name, t.checkpoint, t.revision or "", t.licence or UNKNOWN, t.depth_space) for t in content.teachers],
    )
    sources = ", ".join(markdown_text(source) for source in content.sources)
    data = (
        f"Photographs: {content.images:,} used in {content.contexts:,} contexts, {content.unused:,} rejected or not labelled. "
        f"Sources: {sources}. Photographs have licences of their own, which are not recorded here. No ground truth was used."
    )
    return f"{start}\n\n{teachers}\n\n{data}"


def _licences(content: CardContent) -> str:
    """What these weights derive from, most restrictive first, and what follows from it."""
    origins = _origins(content)
    lines = ["These weights derive from the following, the most restrictive first. This is a record, not legal advice.", ""]
    for licence in _by_restriction(set(origins)):
        lines.append(f"- {markdown_text(licence)} ({licence_class(licence)}): {'; '.join(origins[licence])}")
    strictest = most_restrictive(set(origins))
    names = " and ".join(markdown_text(licence) for licence in strictest)
    lines += ["", f"What binds most: {names}. {CONSEQUENCES[licence_class(strictest[0])]}"]
    return "\n".join(lines)


def _origins(content: CardContent) -> dict[str, list[str]]:
    """By licence, what is under it."""
    found: dict[str, list[str]] = {}
    for teacher in content.teachers:
        what = f"labels made by {_checkpoint(teacher.checkpoint, teacher.revision)}"
        found.setdefault(teacher.licence or UNKNOWN, []).append(what)
    if content.feature_encoder is not None:
        what = f"features of {_checkpoint(content.feature_encoder, content.feature_revision)}"
        found.setdefault(content.feature_licence or UNKNOWN, []).append(what)
    if content.start != "scratch":
        what = f"weights of {_checkpoint(content.student, content.student_revision)}"
        found.setdefault(content.student_licence or UNKNOWN, []).append(what)
    return found


def _by_restriction(licences: Collection[str]) -> Iterator[str]:
    left = set(licences)
    while left:
        strictest = most_restrictive(left)
        yield from strictest
        left -= set(strictest)


def _checkpoint(checkpoint: str, revision: str | None) -> str:
    return markdown_text(checkpoint) + (f" at {markdown_text(revision)}" if revision else "")


def _table(header: Sequence[str], rows: Collection[Sequence[object]]) -> str:
    return "\n".join(markdown_table(header, rows))
