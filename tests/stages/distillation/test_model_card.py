"""The card: metadata the hub reads, the licences that bind, results that can be filled in, a snippet that runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard
from PIL import Image

from stages.distillation.model_card import RESULTS_END, RESULTS_START, CardContent, CardTeacher, model_card, replace_results
from tests.stages.distillation.tiny_students import save_adapted, save_network

LARGE = CardTeacher(
    name="primary",
    checkpoint="depth-anything/Depth-Anything-V2-Large-hf",
    revision="7581137eff8d4e94f6e796d3baea0e9fa79b22d2",
    licence="CC-BY-NC-4.0",
    depth_space="disparity_affine_invariant",
)
ASSISTANT = replace(LARGE, name="assistant", checkpoint="checkpoints/genpercept", revision=None, licence="Apache-2.0")
CONTENT = CardContent(
    name="my-student",
    student="depth-anything/Depth-Anything-V2-Small-hf",
    student_revision="5426e4f0f36572d16453bbda7a8389317b1bef99",
    student_licence="Apache-2.0",
    teachers=(LARGE, ASSISTANT),
    sources=("sa1b", "extra"),
    images=200_000,
    unused=123,
    contexts=400_000,
    training={"steps": 20_000, "lr_encoder": 5e-6},
    metrics={"shared_context": 0.123456, "total": 1.5},
)
RESULT = EvalResult(
    task_type="depth-estimation",
    dataset_type="nyuv2",
    dataset_name="nyuv2",
    dataset_args={"list_sha256": "0f", "images": 654},
    metric_type="abs_rel",
    metric_value=0.043,
)
ELSEWHERE = replace(RESULT, dataset_type="sintel", dataset_name="Sintel", dataset_args=None, metric_value="0.2 ± 0.1")


def test_the_hub_finds_its_metadata() -> None:
    card = ModelCard(model_card(CONTENT))
    assert card.data.to_dict() == {
        "base_model": "depth-anything/Depth-Anything-V2-Small-hf",
        "library_name": "transformers",
        "license": "cc-by-nc-4.0",
        "pipeline_tag": "depth-estimation",
        "tags": ["depth-estimation", "monocular-depth", "distillation"],
    }
    data = "200,000 used in 400,000 contexts, 123 rejected or not labelled. Sources: sa1b, extra."
    for said in (data, "| lr\\_encoder | 5e-06 |", "0.1235"):
        assert said in card.text


def test_the_frozen_encoder_binds_too() -> None:
    free = replace(CONTENT, teachers=(ASSISTANT,), feature_encoder="some/encoder", feature_licence="CC-BY-NC-4.0")
    card = ModelCard(model_card(free))
    assert card.data.to_dict()["license"] == "cc-by-nc-4.0"
    assert "CC-BY-NC-4.0 (non-commercial): features of some/encoder" in card.text
    assert "unknown: features of" in model_card(replace(free, feature_licence=None)).replace("(unknown)", "").replace(" :", ":")


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("MIT", "Apache-2.0"), {"license": "other", "license_name": "apache-2.0-and-mit"}),
        (("OpenRAIL++", "MIT"), {"license": "openrail++"}),
        (("CC BY NC 4.0", "OpenRAIL++"), {"license": "cc-by-nc-4.0"}),
        (("apple-amlr", "MIT"), {"license": "other", "license_name": "apple-amlr"}),
        (("unresolved; research only", "MIT"), {"license": "other", "license_name": "unresolved-research-only"}),
        ((None, "CC-BY-NC-4.0"), {"license": "unknown"}),
    ],
)
def test_the_most_restrictive_licence_is_the_cards(licences: tuple[str | None, ...], expected: dict[str, str]) -> None:
    teachers = [replace(LARGE, licence=licence) for licence in licences]
    content = replace(CONTENT, teachers=teachers, student_licence="MIT", licence_link="https://example.org/licence")
    data = ModelCard(model_card(content)).data.to_dict()
    link = {"license_link": "https://example.org/licence"} if expected["license"] == "other" else {}
    assert {name: value for name, value in data.items() if name.startswith("license")} == expected | link


def test_what_the_weights_derive_from_is_listed_most_restrictive_first() -> None:
    lines = [line for line in model_card(CONTENT).splitlines() if line.startswith("- ") and "(" in line]
    assert [line.split(" (")[0] for line in lines] == ["- CC-BY-NC-4.0", "- Apache-2.0"]
    assert "labels made by depth-anything/Depth-Anything-V2-Large-hf at 7581137" in lines[0]
    assert "labels made by checkpoints/genpercept; weights of depth-anything/Depth-Anything-V2-Small-hf at 5426" in lines[1]
    assert "What binds most: CC-BY-NC-4.0. Treat these weights as excluded from commercial use" in model_card(CONTENT)


def test_a_student_from_scratch_owes_nothing_to_the_checkpoint_of_its_architecture() -> None:
    content = replace(CONTENT, start="scratch", student_licence="CC-BY-NC-4.0", teachers=(replace(LARGE, licence="MIT"),))
    data = ModelCard(model_card(content)).data.to_dict()
    assert data["license"] == "mit"
    assert "base_model" not in data
    fresh = replace(content, start="fresh-head")
    assert ModelCard(model_card(fresh)).data.to_dict()["license"] == "cc-by-nc-4.0"


def test_a_folder_is_no_base_model() -> None:
    data = ModelCard(model_card(replace(CONTENT, student="some/where/student"))).data.to_dict()
    assert "base_model" not in data


def test_awkward_names_break_neither_metadata_nor_tables() -> None:
    licence = "a: 'b' \"c\" # d\n---\ne"
    content = replace(
        CONTENT,
        name="# a <!-- results -->",
        teachers=(replace(LARGE, licence=licence, checkpoint="a|b\nc"),),
        training={"student|x": "`a`\n| b"},
    )
    text = model_card(content)
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "other"
    assert re.fullmatch(r"[a-z0-9.+-]+", data["license_name"])
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 6)
    assert "results of mine" in replace_results(text, "results of mine", "mine", [RESULT])


def test_results_are_replaced_and_nothing_else() -> None:
    text = model_card(CONTENT)
    table = "| a | b |\n| --- | --- |\n| \\1 | .043 |\n"
    once = replace_results(text, table, "mine", [RESULT])
    index = (
        "model-index:\n- name: mine\n  results:\n  - task:\n      type: depth-estimation\n    dataset:\n      name: nyuv2\n"
        "      type: nyuv2\n      args:\n        list_sha256: 0f\n        images: 654\n"
        "    metrics:\n    - type: abs_rel\n      value: 0.043\n"
    )
    assert once == text.replace("Not evaluated yet.", table.strip()).replace("\n---\n\n#", f"\n{index}---\n\n#")
    other = replace_results(once, "other", "other", [replace(RESULT, dataset_type="kitti", metric_value=0.07)])
    assert replace_results(other, table, "mine", [RESULT]) == once


def test_results_in_the_metadata_are_read_as_they_were_written_and_those_from_elsewhere_stay() -> None:
    card = ModelCard(model_card(CONTENT))
    card.data["model_name"], card.data["eval_results"] = "theirs", [ELSEWHERE, replace(RESULT, dataset_type="an earlier one")]
    results = [RESULT, replace(RESULT, metric_type="delta1", metric_value=0.98)]
    written = ModelCard(replace_results(str(card), "a table", "mine", results)).data
    assert written["eval_results"] == [ELSEWHERE, *results]
    assert written["model_name"] == "theirs"


@pytest.mark.parametrize(
    "metadata", ["a: [", "- a list", "1: a number", "model-index: [{name: a}]", "model-index: [{name: a, results: [b]}]"]
)
def test_metadata_that_cannot_be_read_are_refused(metadata: str) -> None:
    text = model_card(CONTENT).replace("library_name: transformers", metadata)
    with pytest.raises(ValueError, match=r"model card: its metadata cannot be read: .*; expected YAML as the hub reads it"):
        replace_results(text, "a table", "mine", [RESULT])


@pytest.mark.parametrize("text", ["", RESULTS_START, f"{RESULTS_END} {RESULTS_START}", f"{RESULTS_START} {RESULTS_END}" * 2])
def test_a_card_without_one_pair_of_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no single pair of the markers <!-- results -->"):
        replace_results(text, "", "mine", [RESULT])


@pytest.mark.parametrize("runs_in_library", [True, False])
def test_the_snippet_runs_in_the_students_folder(
    runs_in_library: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    save_network("depth_anything", tmp_path) if runs_in_library else save_adapted("depth_anything", "dinov3_vit", tmp_path)
    Image.new("RGB", (60, 40), "teal").save(tmp_path / "photo.jpg")
    snippet = re.search(r"```python\n(.*?)```", model_card(replace(CONTENT, runs_in_library=runs_in_library)), re.DOTALL)
    assert snippet
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet[1], names)
    assert names["depth"].shape == (40, 60)
