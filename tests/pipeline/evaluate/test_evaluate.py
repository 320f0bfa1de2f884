"""The evaluate command on real checkpoints of a few thousand random weights, on scenes and on small benchmarks."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import pipeline.evaluate.run
from pipeline.evaluate.cache import PredictionStore, picture_key
from pipeline.evaluate.command import EvaluationError, evaluate_models, main, protocol
from pipeline.evaluate.data import open_set
from pipeline.evaluate.run import EvaluatedModel
from stages.demo_networks import build_depth_anything, save_depth_anything
from stages.distillation.model_card import RESULTS_END, RESULTS_START
from stages.evaluation.benchmarks import LIST_NAMES
from stages.evaluation.fixtures import write_benchmark
from stages.evaluation.metrics import mean_metrics
from stages.evaluation.protocols import BENCHMARKS, rules
from stages.evaluation.rendered import HELD_OUT_SEED, SCENE_SIDE_PX
from tests.pipeline.forked import ended_by
from tests.stages.models.tiny_teachers import save_genpercept, save_marigold

_SCENES = ("--scenes", "2", "--input-px", "48")
_MANY_SCENES = ("--scenes", "8", "--input-px", "48", "--batch-size", "1", "--threads", "1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _student(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five, two images each; NYUv2 as a tar."""
    root = tmp_path_factory.mktemp("benchmarks")
    for name in BENCHMARKS:
        write_benchmark(name, root, scenes=[1, 2], tar=name == "nyuv2")
    return root


@pytest.fixture(scope="module")
def straight(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `_MANY_SCENES` come to without an interruption."""
    return _evaluate(tmp_path_factory.mktemp("straight"), "--model", checkpoint, *_MANY_SCENES)


def _student(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = build_depth_anything(hidden=16, layers=4, heads=2, patch_px=8, fusion=8, image_px=48)
    save_depth_anything(model, folder, torch.float32, 48)
    return folder


def _evaluate(tmp_path: Path, *arguments: object, expected: int = 0) -> dict[str, Any]:
    """The command's JSON file."""
    written = tmp_path / "result.json"
    quick = ["--network-px", "48", "--device", "cpu", "--output", tmp_path / "kept", "--json", written]
    assert main([str(argument) for argument in (*arguments, *quick)]) == expected
    return json.loads(written.read_text())


def _kept(folder: Path) -> Mapping[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("*.pco"))}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_the_protocol_and_the_files_say_the_same(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    report = tmp_path / "new"
    files = ["--json", report / "a.json", "--markdown", report / "a.md", "--per-image", report / "a.csv"]
    assert main(["--model", str(checkpoint), str(copy), *_SCENES, *map(str, files)]) == 0
    header, first, second, about = capsys.readouterr().out.strip().splitlines()
    assert header.split() == ["model", "scenes"]
    written, table, rows = json.loads((report / "a.json").read_text()), (report / "a.md").read_text(), _rows(report / "a.csv")
    (result,) = written["results"]
    for line, name in ((first, "tiny"), (second, "copy")):
        mean = result["means"][name]
        cell = f"{mean['abs_rel']:.4f}/{mean['delta1']:.4f}"
        assert line.split() == [name, cell]
        assert f"| {name} | {cell} |" in table
        own = [row for row in rows if row["model"] == name]
        assert [row["image"] for row in own] == [f"scene {HELD_OUT_SEED}", f"scene {HELD_OUT_SEED + 1}"]
        assert np.mean([float(row["abs_rel"]) for row in own]) == pytest.approx(mean["abs_rel"])
    assert result["means"]["tiny"] == result["means"]["copy"]
    assert result["about"] == about
    assert about in table
    assert f"held-out seeds {HELD_OUT_SEED} to {HELD_OUT_SEED + 1}" in about
    assert result["list_sha256"][:16] in about
    assert sorted(path.name for path in report.iterdir()) == ["a.csv", "a.json", "a.md"]


def test_a_models_scores_do_not_depend_on_the_other_models(checkpoint: Path):
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + 2)
    alone = evaluate_models({"a": checkpoint}, seeds, input_px=48, device="cpu", progress=False)
    together = evaluate_models({"b": checkpoint, "a": checkpoint}, seeds, input_px=48, device="cpu", progress=False)
    assert alone["a"] == together["a"] == together["b"]
    assert mean_metrics([r.metrics for r in alone["a"]]).abs_rel > 0


def test_folders_of_the_same_name_are_told_apart(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    twin = shutil.copytree(checkpoint, tmp_path / "tiny")
    assert main(["--model", str(checkpoint), str(twin), *_SCENES]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [str(checkpoint), str(twin)]


def test_dead_and_broken_models_are_named_and_the_others_are_scored(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = build_depth_anything(hidden=16, layers=4, heads=2, patch_px=8, fusion=8, image_px=48)
    with torch.no_grad():
        for parameter in model.head.conv3.parameters():
            parameter.fill_(-1)  # the layer before it ends in a ReLU too: everything is below zero
    save_depth_anything(model, tmp_path / "dead", torch.float32, 48)
    (tmp_path / "empty").mkdir()
    models = [tmp_path / "dead", tmp_path / "empty", checkpoint]
    assert main(["--model", *map(str, models), *_SCENES]) == 1
    captured = capsys.readouterr()
    assert re.search(rf"evaluate: dead: scene {HELD_OUT_SEED}: .* nowhere > 0", captured.err)
    assert re.search(r"evaluate: empty: .*empty cannot be loaded", captured.err)
    rows = {line.split()[0]: line.split()[1] for line in captured.out.splitlines()[1:3]}
    assert rows["dead"] == "refused"
    assert re.fullmatch(r"\d\.\d{4}/\d\.\d{4}", rows["tiny"])


def test_what_the_command_cannot_accept_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match=r"^x: .*empty cannot be loaded"):
        evaluate_models({"x": tmp_path / "empty"}, [HELD_OUT_SEED], device="cpu", progress=False)
    wrong = ["--model", str(tmp_path / "missing"), "--scenes", "0", "--benchmark", "nyuv2", "kitti", "--per-image", "a.txt"]
    with pytest.raises(SystemExit) as stopped:
        main(wrong)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    for problem in ("missing: no such folder", "--scenes is 0", "--data: 0 paths for 2 benchmarks", "--per-image a.txt"):
        assert problem in message


def test_a_file_that_cannot_be_written_costs_neither_the_table_nor_the_other_files(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "folder.json").mkdir()
    files = ["--json", tmp_path / "folder.json", "--markdown", tmp_path / "a.md"]
    assert main(["--model", str(checkpoint), *_SCENES, *map(str, files)]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].startswith("tiny ")
    assert "folder.json: cannot be written: Is a directory" in captured.err
    assert "| tiny |" in (tmp_path / "a.md").read_text()
    (tmp_path / "file").touch()
    assert main(["--model", str(checkpoint), *_SCENES, "--output", str(tmp_path / "file")]) == 1
    assert re.search(r"pipeline.evaluate: .*Not a directory.*\n.*same command resumes", capsys.readouterr().err)


def test_the_protocol_calls_only_held_out_seeds_held_out():
    assert "held-out" not in protocol(range(5), "depth_metric")
    assert "no alignment" in protocol(range(5), "depth_metric")


def test_all_benchmarks_are_scored_from_one_folder_beside_published_figures(
    checkpoint: Path, benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    written = _evaluate(tmp_path, "--model", checkpoint, "--benchmark", *BENCHMARKS, "--data", benchmarks)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", *BENCHMARKS]
    ours = lines[1].split()[1:]
    for result, cell in zip(written["results"], ours, strict=True):
        mean = result["means"]["tiny"]
        assert (result["images"], mean["images"]) == (2, 2)
        assert cell == f"{mean['abs_rel']:.4f}/{mean['delta1']:.4f}"
        assert rules(result["benchmark"], "marigold-disparity").describe() in result["rules"]
        assert "networks see 48 px" in result["rules"]
        assert str(benchmarks) not in result["about"]  # it goes into model cards
    assert len({result["list_sha256"] for result in written["results"]}) == 5
    assert any(line.startswith("Distill Any Depth (DAv2-L) (published, table 5)") and "0.043/0.981" in line for line in lines)
    assert lines[-1].startswith("published: as printed, under lists, crops and alignments of their own")


def test_a_finished_evaluation_predicts_nothing_again_under_any_protocol_that_shows_the_same_pictures(
    checkpoint: Path, benchmarks: Path, tmp_path: Path
):
    arguments = ("--model", checkpoint, "--benchmark", "kitti", "--data", benchmarks)
    first = _evaluate(tmp_path, *arguments)["results"][0]
    before = _kept(tmp_path / "kept")
    assert len(before) == 2
    assert _evaluate(tmp_path, *arguments)["results"][0] == first
    other = _evaluate(tmp_path, *arguments, "--protocol", "dav2")["results"][0]
    assert other["means"]["tiny"]["abs_rel"] != first["means"]["tiny"]["abs_rel"]
    assert "rows 143:349" in other["about"]
    assert _kept(tmp_path / "kept") == before


def test_other_weights_other_settings_and_other_pixels_have_their_own_predictions(
    checkpoint: Path, benchmarks: Path, tmp_path: Path
):
    data = shutil.copytree(benchmarks / "scannet", tmp_path / "scannet")
    arguments = ("--benchmark", "scannet", "--data", data)
    _evaluate(tmp_path, "--model", checkpoint, *arguments)
    _evaluate(tmp_path, "--model", _student(tmp_path / "other" / "tiny", seed=1), *arguments)
    assert len(_kept(tmp_path / "kept")) == 4
    picture = next(data.rglob("*.jpg"))
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)
    _evaluate(tmp_path, "--model", checkpoint, *arguments)
    assert len(_kept(tmp_path / "kept")) == 5


def test_weights_that_are_replaced_before_the_first_picture_answer_for_nothing(
    checkpoint: Path, benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    arguments = ("--model", copy, "--benchmark", "scannet", "--data", benchmarks)

    def open_and_replace(*given: Any) -> Any:
        _student(copy, seed=1)
        return open_set(*given)

    with monkeypatch.context() as patched:
        patched.setattr(pipeline.evaluate.run, "open_set", open_and_replace)
        assert _evaluate(tmp_path, *arguments, expected=1)["results"][0]["means"] == {}
    assert "the files have changed while this command ran" in capsys.readouterr().err
    assert not _kept(tmp_path / "kept")
    _evaluate(tmp_path, *arguments)
    assert len(_kept(tmp_path / "kept")) == 2


def test_the_size_at_which_each_network_saw_the_pictures_is_recorded(checkpoint: Path, benchmarks: Path, tmp_path: Path):
    save_genpercept(tmp_path / "silent", text="77")
    (tmp_path / "silent/training.json").write_text('{"depth_space": "disparity_affine_invariant"}')
    written, table = tmp_path / "a.json", tmp_path / "a.md"
    arguments = ["--benchmark", "scannet", "--data", benchmarks, "--device", "cpu", "--output", tmp_path / "kept"]
    arguments += ["--json", written, "--markdown", table]

    def evaluated(*more: object) -> dict[str, Any]:
        assert main([str(argument) for argument in (*more, *arguments)]) == 0
        return json.loads(written.read_text())

    both = evaluated("--model", checkpoint, tmp_path / "silent")
    assert "networks see stated 48 x 48 px (tiny), native pixels (silent)" in both["results"][0]["about"]
    assert both["models"]["tiny"]["input_px"] == "stated 48 x 48"
    assert "input_px stated 48 x 48" in table.read_text()
    native = evaluated("--model", checkpoint, "--network-px", "native")
    assert native["results"][0]["about"].count("networks see native pixels") == 1
    assert native["results"][0]["means"]["tiny"] != both["results"][0]["means"]["tiny"]
    assert len(_kept(tmp_path / "kept")) == 6
    square = evaluated("--model", checkpoint, "--network-px", "56", "--network-square")
    assert "networks see 56 x 56 px" in square["results"][0]["about"]
    assert square["models"]["tiny"]["input_px"] == "56 x 56"
    assert len({str(each["results"][0]["means"]["tiny"]) for each in (both, native, square)}) == 3


@pytest.mark.parametrize(
    ("table", "row", "rows"),
    [("2", "both (published, table 2)", 4), ("4", "select (published, table 4)", 4), ("5", "Marigold (published, table 5)", 5)],
)
def test_the_figures_of_one_table_of_the_paper_stand_beside_ours(
    checkpoint: Path, benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, row: str, rows: int
):
    arguments = ["--model", checkpoint, "--benchmark", "eth3d", "--data", benchmarks, "--device", "cpu", "--table", table]
    arguments += ["--output", tmp_path / "kept", "--json", tmp_path / "a.json", "--markdown", tmp_path / "a.md"]
    assert main([str(argument) for argument in arguments]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "(published, " in line]
    assert len(lines) == rows
    assert any(line.startswith(row) for line in lines)
    published = json.loads((tmp_path / "a.json").read_text())["published"]
    assert {each["source"] for each in published} == {f"table {table}"}
    assert row.partition(" (")[0] in (tmp_path / "a.md").read_text()


def test_a_square_needs_a_side(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--model", ".", "--network-square"])
    assert "--network-square: expected --network-px with the side" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_killed_or_interrupted_evaluation_resumes_with_what_it_has(
    checkpoint: Path, straight: dict[str, Any], tmp_path: Path, number: signal.Signals, status: int
):
    command = ["--model", checkpoint, *_MANY_SCENES, "--network-px", "48", "--device", "cpu", "--output", tmp_path / "kept"]
    printed = tmp_path / "printed"
    assert ended_by(number, (PredictionStore, "save"), main, [str(each) for each in command], printed) == status
    assert ("the same command resumes" in printed.read_text()) == (number == signal.SIGINT)
    before = _kept(tmp_path / "kept")
    assert 3 <= len(before) < 8
    resumed = _evaluate(tmp_path, "--model", checkpoint, *_MANY_SCENES)
    assert {path: kept for path, kept in _kept(tmp_path / "kept").items() if path in before} == before
    assert resumed["results"] == straight["results"]


def test_a_damaged_prediction_or_one_of_another_size_is_made_again(checkpoint: Path, tmp_path: Path):
    arguments = ("--model", checkpoint, *_SCENES)
    first = _evaluate(tmp_path, *arguments)["results"]
    before = _kept(tmp_path / "kept")
    flipped, moved = before
    content = bytearray(before[flipped][1])
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    store = PredictionStore(moved.parent.parent)
    store.save(moved.parent.name, moved.stem, np.ones((3, 4), np.float32))
    assert _evaluate(tmp_path, *arguments)["results"] == first
    assert {path: kept for path, (_, kept) in _kept(tmp_path / "kept").items()} == {p: kept for p, (_, kept) in before.items()}


def test_a_flipped_bit_of_a_kept_prediction_is_noticed(tmp_path: Path):
    store = PredictionStore(tmp_path)
    model = store.add_model({"weights": "x"})
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    key = picture_key("a", np.zeros((3, 4, 3), np.uint8))
    store.save(model, key, values)
    (path,) = tmp_path.rglob("*.pco")
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 7):
        path.write_bytes(bytes(byte ^ (1 << bit % 8) if at == bit // 8 else byte for at, byte in enumerate(content)))
        assert store.load(model, key, (3, 4)) is None
    path.write_bytes(content)
    np.testing.assert_array_equal(store.load(model, key, (3, 4)), values)


def test_there_is_no_mean_over_a_part_of_a_benchmark_unless_it_is_asked_for(
    checkpoint: Path, benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    broken = shutil.copytree(benchmarks / "scannet", tmp_path / "scannet")
    depth = sorted(broken.rglob("depth/*.png"))[0]
    Image.fromarray(np.zeros((96, 128), np.uint8)).save(depth)
    arguments = ("--model", checkpoint, "--benchmark", "scannet", "scenes", *_SCENES, "--data", broken)
    written = _evaluate(tmp_path, *arguments, expected=1)
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].split()[1] == "refused"
    assert re.search(rf"evaluate: scannet: .*{depth.name}.*expected grey with 16 bits", captured.err)
    assert "1 of 2 images could not be read" in captured.err
    assert written["results"][0]["means"] == {}
    assert written["results"][1]["means"]["tiny"]["images"] == 2
    depth.unlink()
    _evaluate(tmp_path, *arguments, expected=1)
    assert re.search(rf"evaluate: scannet: 1 of the 4 files .*{depth.name}.*not scored: tiny", capsys.readouterr().err)
    allowed = _evaluate(tmp_path, *arguments, "--allow-missing")["results"][0]
    assert allowed["means"]["tiny"]["images"] == 1
    assert "1 of 2 images" in allowed["about"]


def test_results_are_in_the_lists_order_and_batches_do_not_move_them(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lines = []
    for name, width_px in (("wide", 128), ("narrow", 96)):
        data = write_benchmark("scannet", tmp_path / name, scenes=range(3), width_px=width_px)
        own = (data / LIST_NAMES["scannet"]).read_text().splitlines()
        lines.append([" ".join(f"{name}/scannet/{path}" for path in line.split()) for line in own])
    mixed = tmp_path / "list.txt"
    mixed.write_text("\n".join(line for pair in zip(*lines, strict=True) for line in pair))
    tables = []
    for batch in (1, 2, 3):
        if batch == 3:  # room for less than a picture, so that each is read, predicted and scored alone
            monkeypatch.setattr(pipeline.evaluate.run, "_MOST_PX", 1)
        table, output = tmp_path / f"{batch}.csv", tmp_path / f"kept-{batch}"
        _evaluate(
            tmp_path,
            *("--model", checkpoint, "--benchmark", "scannet", "--data", tmp_path, "--list", mixed),
            *("--batch-size", batch, "--threads", "3", "--per-image", table, "--output", output),
        )
        tables.append(_rows(table))
    assert [row["image"] for row in tables[1]] == [line.split()[0] for line in mixed.read_text().splitlines()]
    for one, two, alone in zip(*tables, strict=True):
        assert float(one["abs_rel"]) == pytest.approx(float(two["abs_rel"]), rel=1e-3)
        assert float(one["abs_rel"]) == pytest.approx(float(alone["abs_rel"]), rel=1e-3)


@pytest.mark.parametrize(("most_px", "expected"), [(1e9, [2]), (1.5 * SCENE_SIDE_PX**2, [1, 1])])
def test_small_pictures_whose_truth_is_large_are_predicted_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_px: float, expected: list[int]
):
    batches, predict = [], EvaluatedModel.predict

    def counted(self: EvaluatedModel, pictures: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
        batches.append(len(pictures))
        return predict(self, pictures, names)

    monkeypatch.setattr(EvaluatedModel, "predict", counted)
    monkeypatch.setattr(pipeline.evaluate.run, "_MOST_PX", most_px)
    _evaluate(tmp_path, "--model", checkpoint, *_SCENES)
    assert batches == expected


def test_teachers_of_all_loaders_stand_in_one_table_each_under_the_protocol_of_its_space(
    checkpoint: Path, benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_marigold(tmp_path / "marigold")
    save_genpercept(tmp_path / "genpercept", text="77")
    (tmp_path / "genpercept" / "training.json").write_text('{"depth_space": "disparity_affine_invariant"}')
    models = [checkpoint, tmp_path / "genpercept", tmp_path / "marigold"]
    table = tmp_path / "a.parquet"
    arguments = ("--model", *models, "--benchmark", "diode", "--data", benchmarks, "--per-image", table)
    disparity, depth = _evaluate(tmp_path, *arguments)["results"]
    assert (disparity["protocol"], list(disparity["means"])) == ("marigold-disparity", ["tiny", "genpercept"])
    assert (depth["protocol"], list(depth["means"])) == ("marigold-depth", ["marigold"])
    written = pq.read_table(table)
    assert written.num_rows == 6
    assert np.mean(written["abs_rel"].to_numpy()[4:]) == pytest.approx(depth["means"]["marigold"]["abs_rel"])
    capsys.readouterr()
    (one,) = _evaluate(tmp_path, *arguments, "--protocol", "marigold-disparity", expected=1)["results"]
    assert one == disparity
    assert re.search(r"evaluate: diode: .*use marigold-depth.*not scored: marigold", capsys.readouterr().err)


def test_the_noise_of_a_picture_depends_on_the_seed_and_on_nothing_around_it(benchmarks: Path, tmp_path: Path):
    save_marigold(tmp_path / "marigold")
    arguments = ("--model", tmp_path / "marigold", "--benchmark", "diode", "--data", benchmarks)
    together = _evaluate(tmp_path, *arguments)["results"][0]["means"]["marigold"]["abs_rel"]
    apart = _evaluate(tmp_path / "kept", *arguments, "--batch-size", "1")["results"][0]["means"]["marigold"]["abs_rel"]
    other = _evaluate(tmp_path, *arguments, "--seed", "1")["results"][0]["means"]["marigold"]["abs_rel"]
    assert together == pytest.approx(apart, rel=1e-3)
    assert abs(together - other) > 1e-3 * together
    assert len(_kept(tmp_path / "kept" / "diode")) == 4


def test_steps_and_ensemble_are_for_the_models_that_start_from_noise(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """They stand in the results, as what the checkpoint states does; models without noise are scored beside it."""
    save_marigold(tmp_path / "marigold")
    arguments = ("--model", tmp_path / "marigold", checkpoint, "--scenes", "1", "--input-px", "48")
    stated = _evaluate(tmp_path, *arguments)
    told = _evaluate(tmp_path, *arguments, "--steps", "2", "--ensemble", "3")
    found = [(result["models"]["marigold"]["steps"], result["models"]["marigold"]["ensemble"]) for result in (stated, told)]
    assert found == [(4, 1), (2, 3)]
    assert "steps" not in told["models"]["tiny"]
    _evaluate(tmp_path, *("--model", checkpoint, "--scenes", "1", "--steps", "2"), expected=1)
    assert "--steps and --ensemble are for models that start from noise" in capsys.readouterr().err


def test_the_results_go_into_the_model_card_between_its_markers(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    (model / "README.md").write_text(f"---\nlicense: mit\n---\nbefore\n{RESULTS_START}\nold\n{RESULTS_END}\nafter\n")
    arguments = ("--model", model, *_SCENES, "--write-card")
    (result,) = _evaluate(tmp_path, *arguments)["results"]
    mean = result["means"]["model"]
    card = (model / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nmodel-index:\n- name: model\n")
    assert f"\n---\nbefore\n{RESULTS_START}\n" in card
    assert card.endswith(f"\n{RESULTS_END}\nafter\n")
    assert f"| model | {mean['abs_rel']:.4f}/{mean['delta1']:.4f} |" in card
    assert "old" not in card
    assert str(tmp_path) not in card
    found = ModelCard(card).data["eval_results"]
    numbers = {name: value for name, value in mean.items() if not name.startswith("images") and value is not None}
    assert {one.metric_type: one.metric_value for one in found} == pytest.approx(numbers, abs=1e-6)
    assert len(found) == len(numbers) >= 7
    assert {(one.dataset_type, one.dataset_config) for one in found} == {("scenes", "scenes-disparity")}
    assert found[0].dataset_args == {
        **{name: result[name] for name in ("rules", "list_sha256")},
        "images_in_list": 2,
        **{name: mean[name] for name in ("images", "images_with_edges")},
    }
    (model / "README.md").write_text(card.replace("license: mit", "license: ["))
    _evaluate(tmp_path, *arguments, expected=1)
    assert "README.md: model card: its metadata cannot be read" in capsys.readouterr().err
    (model / "README.md").unlink()
    _evaluate(tmp_path, *arguments, expected=1)
    assert "README.md: no model card" in capsys.readouterr().err
