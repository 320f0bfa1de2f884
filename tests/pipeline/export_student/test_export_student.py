"""A student on its way to others: ONNX that says what PyTorch says, and a folder that is complete."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForDepthEstimation

from pipeline.export_student.command import main
from pipeline.export_student.onnx_file import write_onnx
from stages.models.checkpoints import read_json

PAGE = (Path(__file__).parents[3] / "docs/export-student.md").read_text(encoding="utf-8")
CARD = "---\nlicense: apache-2.0\n---\n\n# a student\n"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Path:
    """A small student with a model card."""
    folder = Path(shutil.copytree(checkpoints / "student", tmp_path_factory.mktemp("student") / "mine"))
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.mark.campaign
def test_onnx_takes_pictures_of_any_size_and_number_and_says_what_the_network_says(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(student, "students/mine")
    (arguments,) = re.findall(r"^    python -m pipeline.export_student (.+)$", PAGE, re.M)
    assert main(shlex.split(arguments)) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"onnx/model.onnx: [\d.]+ MB; largest difference from PyTorch [\d.e-]+, [\d.e-]+ of the largest value", printed
    )
    assert "ready to upload" in printed
    session: Any = onnxruntime.InferenceSession(str(tmp_path / "upload/onnx/model.onnx"), providers=["CPUExecutionProvider"])
    network = AutoModelForDepthEstimation.from_pretrained("upload", dtype=torch.float32).eval()  # the folder is a checkpoint
    for shape in ((1, 3, 24, 24), (3, 3, 36, 84)):
        pictures = torch.randn(shape)
        with torch.no_grad():
            expected = network(pictures).predicted_depth.numpy()
        (found,) = session.run(["predicted_depth"], {"pixel_values": pictures.numpy()})
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    card = (tmp_path / "upload/README.md").read_text()
    assert card.startswith(CARD.rstrip())
    assert "`onnx/model.onnx` takes `pixel_values`" in card
    assert read_json(tmp_path / "upload/config.json") == read_json(student / "config.json")


def test_a_network_that_is_no_student_is_refused(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(checkpoints / "assistant"), "-o", str(tmp_path / "out"), "--onnx"]) == 2
    assert "expected a student" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_asked_for_is_said(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(student), "-o", str(student), "--float16", "--push-to-hub", "a"]) == 2
    said = capsys.readouterr().err
    assert "--float16 is of the ONNX file" in said
    assert "expected owner/name" in said
    assert "the student's own folder" in said
    assert main([str(tmp_path / "nothing"), "-o", str(tmp_path / "out")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_without_the_hub_the_folder_is_written_and_the_upload_is_an_error_in_words(
    student: Path, tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]
):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert main([str(student), "-o", str(tmp_path / "out"), "--push-to-hub", "nobody/nothing"]) == 1
    assert "pipeline.export_student: " in capsys.readouterr().err
    assert (tmp_path / "out/README.md").read_text() == CARD
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert main([str(checkpoints / "student"), "-o", str(tmp_path / "bare"), "--push-to-hub", "nobody/nothing"]) == 2
    assert "a model card that states the licence" in capsys.readouterr().err


@pytest.mark.campaign
def test_float16_is_half_as_large_and_near(student: Path, tmp_path: Path):
    found = write_onnx(student, tmp_path / "half.onnx", float16=True)
    assert found.largest <= 0.05 * found.largest_value
