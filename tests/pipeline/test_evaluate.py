"""The evaluate command on real checkpoints of a few thousand random weights."""

import json
import re
import shutil

import pytest
import torch

from pipeline.evaluate import EvaluationError, evaluate_models, main, protocol
from stages.demo_models import build_depth_anything, save_depth_anything
from stages.evaluation.metrics import mean_metrics
from stages.evaluation.scenes import HELD_OUT_SEED


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    torch.manual_seed(0)
    model = build_depth_anything(hidden=16, layers=4, heads=2, patch_px=8, fusion=8, image_px=48)
    save_depth_anything(model, folder, torch.float32, 48)
    return folder


def test_the_table_the_protocol_and_the_json_file_say_the_same(checkpoint, tmp_path, capsys):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    report = tmp_path / "new" / "scores.json"
    arguments = ["--model", str(checkpoint), str(copy), "--scenes", "2", "--input-px", "48", "--json", str(report)]
    assert main(arguments) == 0
    header, first, second, about = capsys.readouterr().out.strip().splitlines()
    assert header.split() == ["model", "AbsRel", "delta1", "scenes"]
    written = json.loads(report.read_text())
    for line, name in ((first, "tiny"), (second, "copy")):
        mean = written["models"][name]["mean"]
        assert line.split() == [name, f"{mean['abs_rel']:.4f}", f"{mean['delta1']:.4f}", "2"]
    assert written["models"]["tiny"] == written["models"]["copy"]
    assert [scene["seed"] for scene in written["models"]["tiny"]["scenes"]] == [HELD_OUT_SEED, HELD_OUT_SEED + 1]
    assert written["protocol"] == about
    assert f"held-out seeds {HELD_OUT_SEED} to {HELD_OUT_SEED + 1}" in about
    assert list(report.parent.iterdir()) == [report]


def test_a_models_scores_do_not_depend_on_the_other_models(checkpoint):
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + 2)
    alone = evaluate_models({"a": checkpoint}, seeds, input_px=48, device="cpu", progress=False)
    together = evaluate_models({"b": checkpoint, "a": checkpoint}, seeds, input_px=48, device="cpu", progress=False)
    assert alone["a"] == together["a"] == together["b"]
    assert mean_metrics([r.metrics for r in alone["a"]]).abs_rel > 0


def test_folders_of_the_same_name_are_told_apart(checkpoint, tmp_path, capsys):
    twin = shutil.copytree(checkpoint, tmp_path / "tiny")
    assert main(["--model", str(checkpoint), str(twin), "--scenes", "1", "--input-px", "48"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [str(checkpoint), str(twin)]


def test_a_dead_model_ends_the_command_with_its_name_and_the_reason(checkpoint, tmp_path, capsys):
    torch.manual_seed(0)
    model = build_depth_anything(hidden=16, layers=4, heads=2, patch_px=8, fusion=8, image_px=48)
    with torch.no_grad():
        for parameter in model.head.conv3.parameters():
            parameter.fill_(-1)  # the layer before it ends in a ReLU too: everything is below zero
    save_depth_anything(model, tmp_path / "dead", torch.float32, 48)
    assert main(["--model", str(checkpoint), str(tmp_path / "dead"), "--scenes", "1", "--input-px", "48"]) == 1
    assert re.search(rf"evaluate: dead: scene {HELD_OUT_SEED}: .* nowhere > 0", capsys.readouterr().err)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match=r"^x: .*empty cannot be loaded"):
        evaluate_models({"x": tmp_path / "empty"}, [HELD_OUT_SEED], device="cpu", progress=False)
    with pytest.raises(SystemExit) as stopped:
        main(["--model", str(tmp_path / "missing"), "--scenes", "0"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "missing: no such folder" in message
    assert "--scenes is 0" in message


def test_the_protocol_calls_only_held_out_seeds_held_out():
    assert "held-out" not in protocol(range(5), "depth_metric")
    assert "no alignment" in protocol(range(5), "depth_metric")
