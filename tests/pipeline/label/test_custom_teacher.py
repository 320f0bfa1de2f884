"""A teacher of another package, loaded by a function of the user's own: the example of docs/labelling.md, run as it stands."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import manifests
from pipeline.evaluate.command import main as evaluate
from pipeline.label.command import main
from pipeline.predict.command import main as predict
from stages.label_store import LabelReader
from stages.models import ModelSpec, load_model
from tests.pipeline.label.test_growth import write_photos

PAGE = (Path(__file__).parents[3] / "docs/labelling.md").read_text(encoding="utf-8")
_SMALL = ["--plan.context", "whole", "--plan.context-px", "48", "--plan.patch-px", "48", "--plan.min-image-px", "8"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The working directory: the page's module, its weights, and photographs."""
    (program,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "class Teacher" in code]
    (tmp_path / "my_teacher.py").write_text(program)
    torch.manual_seed(0)
    save_file(torch.nn.Conv2d(3, 1, 5, padding=2).state_dict(), tmp_path / "weights.safetensors")
    write_photos(tmp_path / "photos", range(3))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_teacher", None)


def _arguments(*more: str) -> list[str]:
    (command,) = re.findall(r"^    python -m pipeline.label (.*my_teacher:load.*)$", PAGE, re.M)
    return [*shlex.split(command), *_SMALL, *more]


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.campaign)])
def test_the_pages_network_labels_through_the_command_and_its_digest_is_in_the_column(folder: Path, workers: str):
    assert main(_arguments("--workers", workers)) == 0
    run = folder / "RUN"
    assert manifests.verify(run, deep=True) == []
    column = manifests.load_column(run, "mine")
    assert (column.depth_space, column.fingerprint["loader"]) == ("depth_affine_invariant", "my_teacher:load")
    assert re.fullmatch("[0-9a-f]{64}", str(column.fingerprint["weights_sha256"]))
    part = manifests.load_part(run, "mine", "photos.00000")
    reader = LabelReader(manifests.place_of(run), f"columns/mine/{part.zarr}")
    context = reader.context(0)
    assert context
    assert np.isfinite(context.values).all()
    assert main(_arguments("--workers", "0")) == 0  # nothing is left to do


def test_other_weights_under_the_old_name_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(_arguments("--workers", "0")) == 0
    save_file(torch.nn.Conv2d(3, 1, 5, padding=2).state_dict(), folder / "weights.safetensors")
    assert main(_arguments("--workers", "0")) == 2
    assert "column mine: weights_sha256: found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (("load = Teacher", "make = Teacher"), [], "has no function 'load'"),
        (("self.weights_sha256 = ", "digest = "), [], "returned Teacher without weights_sha256"),
        (("depth_affine_invariant", "depth"), [], "depth_space is 'depth', expected one of disparity_affine_invariant"),
        (("[:, 0].cpu().numpy()", ".cpu().numpy()"), [], "predict returned float32 [1, 1, 48, 48], expected a NumPy array"),
        (("[:, 0].cpu().numpy()", "[:, 0].cpu()"), [], "predict returned Tensor, expected a NumPy array"),
        (("[:, 0].cpu()", "[:, 0].double().cpu()"), [], "predict returned float64 [1, 48, 48]"),
        (("/ 255", "* float('nan')"), [], "2304 of 2304 values are not finite"),
        (("import torch", "import a_package_that_is_not_there"), [], "No module named 'a_package_that_is_not_there'"),
        (("", ""), ["--mine.loader", "my_techer:load"], "no module 'my_techer'; put it into the working directory"),
        (("", ""), ["--mine.depth-space", "depth_metric"], "depth_metric was given, but the model says depth_affine_invariant"),
    ],
)  # fmt: skip
def test_what_is_not_as_the_page_says_is_named_before_anything_is_labelled(
    folder: Path, change: tuple[str, str], more: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    program = (folder / "my_teacher.py").read_text()
    assert change[0] in program
    (folder / "my_teacher.py").write_text(program.replace(*change))
    assert main(_arguments("--workers", "0", *more)) == 2
    assert words in capsys.readouterr().err
    assert not list(folder.glob("RUN/columns/mine/*.zarr"))


def test_what_is_not_passed_on_must_not_be_given(folder: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(_arguments("--mine.dtype", "bfloat16"))
    assert "dtype is bfloat16, but is not passed on to my_teacher:load" in capsys.readouterr().err


def test_nothing_in_a_run_makes_anything_be_imported(folder: Path):
    assert main(_arguments("--workers", "0")) == 0
    sys.modules.pop("my_teacher")
    (folder / "my_teacher.py").write_text("raise AssertionError('imported')")
    run = folder / "RUN"
    assert manifests.summarize(run).columns[1].labelled == 3
    assert manifests.verify(run, deep=True) == []
    assert manifests.repair(run).dropped == ()
    assert main(["--run", str(run), "--preset", "demo", "--plan.context", "whole", "--workers", "0"]) == 2  # of another plan
    assert "my_teacher" not in sys.modules


def test_the_model_is_called_as_all_others_are(folder: Path):
    spec = ModelSpec(name="mine", loader="my_teacher:load", checkpoint=str(folder / "weights.safetensors"))
    model = load_model(spec)
    depth = model.predict(np.zeros((2, 8, 9, 3), np.uint8), [1, 2])
    assert (depth.shape, depth.dtype, model.spec.depth_space) == ((2, 8, 9), np.float32, "depth_affine_invariant")


def test_a_model_that_takes_seeds_is_given_one_for_each_picture(folder: Path):
    program = (folder / "my_teacher.py").read_text()
    seeded = program.replace("def predict(self, images):", "def predict(self, images, seeds):").replace(
        "    depth_space", "    takes_seeds = True\n    depth_space", 1
    )
    changed = seeded.replace(
        "[:, 0].cpu().numpy()", "[:, 0].cpu().numpy() * 0 + torch.tensor(seeds)[:, None, None].float().numpy()"
    )
    (folder / "my_teacher.py").write_text(changed)
    spec = ModelSpec(name="mine", loader="my_teacher:load", checkpoint=str(folder / "weights.safetensors"))
    model = load_model(spec)
    assert model.predict(np.zeros((2, 8, 9, 3), np.uint8), [3, 4])[:, 0, 0].tolist() == [3, 4]
    assert model.predict(np.zeros((2, 8, 9, 3), np.uint8))[:, 0, 0].tolist() == [0, 0]


def _page_command(name: str) -> list[str]:
    (command,) = re.findall(rf"^    python -m pipeline.{name} (.*my_teacher:load.*)$", PAGE, re.M)
    return shlex.split(command)


def test_the_pages_network_is_evaluated_and_predicts(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate([*_page_command("evaluate"), "--scenes", "2", "--input-px", "48", "--json", "result.json"]) == 0
    (model,) = json.loads((folder / "result.json").read_text())["models"].values()
    assert (model["loader"], model["depth_space"]) == ("my_teacher:load", "depth_affine_invariant")
    assert re.fullmatch("[0-9a-f]{64}", model["checkpoint_sha256"])
    assert predict(_page_command("predict")) == 0
    assert len(list((folder / "DEPTH").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--network-px", "64"], "input_px is 64, but is not passed on to my_teacher:load"),
        (["--dtype", "bfloat16"], "dtype is bfloat16, but is not passed on to my_teacher:load"),
        (["--revision", "main"], "revision is main, but is not passed on to my_teacher:load"),
        (["--model", "my_techer:load"], "no module 'my_techer'; put it into the working directory"),
        (["--model", "my_teacher:load=nowhere"], "No such file or directory"),
    ],
)
def test_a_prediction_that_the_function_cannot_be_asked_for_is_refused(
    folder: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    assert predict([*_page_command("predict"), *more]) == 2
    assert words in capsys.readouterr().err
    assert not (folder / "DEPTH").exists()
