"""What a checkpoint says of itself decides: its depth space, licence, loader and size, and contradictions are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers.models.dpt.image_processing_pil_dpt import get_resize_output_image_size

from pipeline.label.config import PRESETS, LabelConfig
from stages.models import ModelSpec, problems_of, read_stated
from stages.models.pixels import stated_size
from stages.models.resolve import resolve

DEMO = Path("pipeline/demo_checkpoints")


def _copy(source: Path, copy: Path, **training: object) -> Path:
    """A checkpoint whose training.json says this."""
    shutil.copytree(source, copy)
    (copy / "training.json").write_text(json.dumps(training))
    return copy


@pytest.mark.parametrize(
    ("stated_px", "multiple"), [((518, 518), 14), ((192, 192), 12), ((384, 384), 32), ((384, 512), 1), ((48, 48), 16)]
)
@pytest.mark.parametrize("keep_aspect", [True, False])
def test_the_stated_size_of_any_picture_is_the_one_that_the_library_computes(
    stated_px: tuple[int, int], multiple: int, keep_aspect: bool
):
    sides = np.random.default_rng(0).integers(32, 5000, (400, 2)).tolist()
    for height, width in [*sides, (375, 1242), (640, 480), (480, 640), *[(side, side) for side in stated_px]]:
        wanted = get_resize_output_image_size(np.empty((3, height, width)), stated_px, keep_aspect, multiple)
        if 0 in (wanted.height, wanted.width):  # the library would give the network a picture without pixels
            continue
        found = stated_size(height, width, stated_px=stated_px, multiple=multiple, keep_aspect=keep_aspect)
        assert found == (wanted.height, wanted.width)


@pytest.mark.parametrize("name", ["primary", "assistant", "student"])
def test_the_demos_checkpoints_say_all_of_themselves(name: str):
    stated = read_stated(str(DEMO / name), DEMO / name)
    assert stated.depth_space is not None
    assert stated.licence is not None
    assert (stated.depth_space.value, stated.licence.value) == ("disparity_affine_invariant", "Apache-2.0")
    assert stated.input_px == (192 if name == "assistant" else (192, 192))
    assert stated.loader == ("genpercept" if name == "assistant" else "transformers")


def test_a_preset_whose_checkpoint_is_replaced_keeps_nothing_of_it(families: Path):
    for preset in PRESETS.values():
        config = LabelConfig(run=Path("run"), sources=("x",), **preset)
        for teacher in config.teachers.values():
            given = (teacher.loader, teacher.depth_space, teacher.licence, teacher.revision, teacher.input_px)
            assert given == (None,) * 5
    known = resolve(ModelSpec(name="primary", checkpoint="depth-anything/Depth-Anything-V2-Large-hf"))
    assert known.licence == "CC-BY-NC-4.0"
    replaced = resolve(ModelSpec(name="primary", checkpoint=str(families / "depth_anything")))
    assert (replaced.licence, replaced.depth_space) == ("unknown", "disparity_affine_invariant")
    marigold = resolve(ModelSpec(name="assistant", checkpoint=str(families / "marigold")))
    assert (marigold.loader, marigold.depth_space) == ("marigold", "depth_affine_invariant")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: cc-by-nc-4.0\ntags:\n- a\n---\n# x", "cc-by-nc-4.0"),
        ("---\nlicense: other\nlicense_name: 'apple-amlr'\n---\n", "apple-amlr"),
        ("---\nlicense: other\n---\n", "unknown"),
        ("# x\nlicense: mit\n", "unknown"),
        ("---\nlicense: &a [*a]\n---\n", "unknown"),
    ],
)
def test_a_model_card_says_the_licence_of_its_weights(families: Path, tmp_path: Path, card: str, licence: str):
    folder = shutil.copytree(families / "depth_anything", tmp_path / "copy")
    (folder / "README.md").write_text(card)
    spec = ModelSpec(checkpoint=str(folder))
    assert resolve(spec).licence == licence
    assert resolve(resolve(spec)) == resolve(spec)
    given = ModelSpec(checkpoint=str(folder), licence="BSD-3-Clause")
    if licence == "unknown":
        assert resolve(given).licence == "BSD-3-Clause"
    else:
        with pytest.raises(ValueError, match=rf"licence: BSD-3-Clause was given, .* {licence} \(.*README\.md\)"):
            resolve(given)


def test_what_training_json_says_cannot_be_overruled_nor_contradict_the_network(families: Path, tmp_path: Path):
    folder = _copy(families / "depth_anything", tmp_path / "copy", depth_space="depth_affine_invariant")
    assert resolve(ModelSpec(checkpoint=str(folder))).depth_space == "depth_affine_invariant"
    given = ModelSpec(name="primary", checkpoint=str(folder), depth_space="disparity_affine_invariant")
    (problem,) = problems_of(given)
    assert problem.startswith("primary: depth_space: disparity_affine_invariant was given")
    assert f"says depth_affine_invariant ({folder}/training.json)" in problem
    metric = _copy(families / "metric", tmp_path / "metric", depth_space="disparity_affine_invariant")
    (problem,) = problems_of(ModelSpec(checkpoint=str(metric)))
    assert "contradicts itself: disparity_affine_invariant by" in problem
    (folder / "training.json").write_text('{"depth_space": "near"}')
    with pytest.raises(ValueError, match="depth_space is 'near', expected one of"):
        resolve(ModelSpec(checkpoint=str(folder)))


def test_a_run_and_an_unfinished_training_are_called_what_they_are(tmp_path: Path):
    for name, files, words in (
        ("run", ("run.json", "columns/x"), "a run of labels, not a checkpoint; train a student on it"),
        ("training", ("dataset.lock.json", "states/step-1.pt"), "a training that is not finished: it has no weights yet"),
        ("other", ("notes.txt",), "no checkpoint: found neither config.json"),
    ):
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).touch()
        with pytest.raises(ValueError, match=words):
            resolve(ModelSpec(checkpoint=str(tmp_path / name)))


def test_labels_are_made_at_the_plans_size_unless_the_stated_one_is_asked_for(families: Path):
    spec = ModelSpec(checkpoint=str(families / "depth_anything"))
    assert resolve(spec).input_px is None
    assert resolve(ModelSpec(checkpoint=spec.checkpoint, input_px="stated")).input_px == "stated"
    assert resolve(ModelSpec(checkpoint=spec.checkpoint, input_px="native")).input_px is None
    assert resolve(ModelSpec(checkpoint=str(families / "marigold"), input_px="stated")).input_px == 768
    assert resolve(ModelSpec(checkpoint="Intel/dpt-large", input_px="native")).input_px == "native"
