"""`python -m benchmarks.gpu`, whole and in miniature on a CPU: each figure is there, and what is not measured is named."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import losses, networks
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.command import main, measure_all, sections
from benchmarks.gpu.report import Figure, figure
from benchmarks.gpu.sizes import FULL, MINIATURE
from stages.models import load_model

TEACHERS = ("Depth Anything v2 Small", "Depth Anything v2 Large", "GenPercept", "Lotus-D")
PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
STUDENTS = ("Student ViT-S", "Student ViT-B", "Student ViT-L", "Student ViT-L, torch.compile")


def _command(folder: Path, *flags: str) -> tuple[int, dict[str, Any], list[str]]:
    """The exit status, the JSON, and the rows of the Markdown."""
    status = main([*flags, "--json", str(folder / "found.json"), "--markdown", str(folder / "found.md")])
    rows = [line for line in (folder / "found.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    return status, json.loads((folder / "found.json").read_text("utf-8")), rows[1:]


def _numbers(found: dict[str, Any]) -> Iterator[float]:
    for section in found["sections"]:
        for taken in section["figures"]:
            yield from taken["number"].values()
            yield from (taken["ratio"] or {}).values()


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], list[str]]:
    return _command(tmp_path_factory.mktemp("gpu"), "--device", "cpu", "--miniature")


@pytest.mark.campaign
def test_every_section_is_measured(miniature: tuple[int, dict[str, Any], list[str]]):
    status, found, _ = miniature
    assert status == 0
    assert {section["section"]: section["status"] for section in found["sections"]} == {
        section.name: "measured" for section in sections()
    }


@pytest.mark.campaign
def test_every_figure_is_there(miniature: tuple[int, dict[str, Any], list[str]]):
    _, found, rows = miniature
    figures = {section["section"]: [taken["what"] for taken in section["figures"]] for section in found["sections"]}
    for teacher in TEACHERS:
        assert figures[f"{teacher}, precision"] == [f"{precision}, batches of 2" for precision in PRECISIONS]
        sides = ("bare", "worker, 1 decoding threads", "worker, 2 decoding threads")
        assert figures[f"{teacher}, worker"] == [f"bfloat16, {side}" for side in sides]
    for teacher in ("GenPercept", "Lotus-D"):
        sides = ("plain", "cudnn.benchmark", "channels_last", "both")
        assert figures[f"{teacher}, memory format"] == [f"bfloat16, {side}" for side in sides]
    for student in STUDENTS:
        step, waiting, memory = figures[student][-3:]
        assert (step, waiting[:17], memory[:11]) == ("batches of 2", "share of the time", "peak memory")
    assert figures["Student ViT-L on all cards"] == ["1 rank (there is no other card) over gloo, batches of 2"]
    assert len(figures["L_Dis, forward and backward"]) == 2 * len(MINIATURE.loss_shapes)
    assert len(rows) == sum(map(len, figures.values()))


@pytest.mark.campaign
def test_figures_are_finite_and_positive(miniature: tuple[int, dict[str, Any], list[str]]):
    assert all(math.isfinite(number) and number > 0 for number in _numbers(miniature[1]))


@pytest.mark.campaign
def test_the_table_has_the_numbers_of_the_json(miniature: tuple[int, dict[str, Any], list[str]]):
    _, found, rows = miniature
    shown = dict(row.strip("| ").split(" | ") for row in rows)
    for section in found["sections"]:
        for taken in section["figures"]:
            own, _, ratio = shown[f"{section['section']}: {taken['what']}"].partition("; ")
            assert taken["unit"] in own
            assert _first_number(own) == pytest.approx(taken["number"]["value"], rel=6e-3)
            assert bool(ratio) is (taken["ratio"] is not None)
            if ratio:
                assert _first_number(ratio) == pytest.approx(taken["ratio"]["value"], rel=6e-3)
                assert ratio.endswith(f" of {taken['compared_with']}")


def _first_number(text: str) -> float:
    found = re.match(r"[\d,.]+", text)
    assert found, text
    return float(found[0].replace(",", ""))


def test_a_section_that_fails_is_named_with_what_it_had_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def failing(bench: Bench) -> Iterator[Figure]:
        yield figure("before", "ms", [1.5])
        raise torch.OutOfMemoryError("no | room\nfor it")

    monkeypatch.setattr(losses, "loss_times", failing)
    flags = ("--device", "cpu", "--miniature", "--only", "L_Dis", "Small, precision")
    status, found, rows = _command(tmp_path, *flags)
    assert status == 1
    assert rows[:3] == [
        "| L_Dis, forward and backward: before | 1.50 ms |",
        "| L_Dis, forward and backward | failed: OutOfMemoryError: no / room for it |",
        rows[2],
    ]
    assert rows[2].startswith("| Depth Anything v2 Small, precision: float32")
    assert [section["status"] for section in found["sections"][:2]] == ["failed", "measured"]


def test_sections_that_are_not_asked_for_or_do_not_fit_are_named(tmp_path: Path):
    bench = Bench(device="cpu", sizes=replace(MINIATURE, time_share=1.0), folder=tmp_path)
    outcomes = measure_all(bench, sections(), 12, only=["L_Dis", "Large, precision"])
    assert [outcome.section for outcome in outcomes] == [section.name for section in sections()]
    why = {outcome.section: (outcome.status, outcome.reason) for outcome in outcomes}
    assert why["L_Dis, forward and backward"] == ("measured", "")
    assert why["Lotus-D, worker"] == ("skipped", "not asked for")
    status, reason = why["Depth Anything v2 Large, precision"]
    assert status == "skipped"
    assert re.fullmatch(r"1\d s were left, it may take 25 s", reason)


def test_without_a_card_the_full_size_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--device", "cpu"])
    assert ended.value.code == 2
    assert "only --miniature can be measured" in capsys.readouterr().err


def test_networks_of_the_full_size_have_as_many_weights_as_the_published_ones():
    """Depth Anything v2 by its authors' table, UNet and VAE of Stable Diffusion 2 by their files; Lotus' UNet takes a task."""
    with torch.device("meta"):
        found: dict[str, Any] = {name: networks.build_vit(size) for name, size in FULL.vits.items()}
        found["unet"] = networks.build_unet(FULL.diffusion, lotus=False)
        found["vae"] = networks.build_vae(FULL.diffusion)
    millions = {name: round(sum(p.numel() for p in network.parameters()) / 1e6, 1) for name, network in found.items()}
    assert millions == {"S": 24.8, "B": 97.5, "L": 335.3, "unet": 865.9, "vae": 83.7}


def test_checkpoints_are_recognised_as_those_of_their_families(tmp_path: Path):
    bench = Bench(device="cpu", sizes=MINIATURE, folder=tmp_path)
    loaders = {name: load_model(bench.teacher_spec(name, "float32")).spec.loader for name in TEACHERS}  # type: ignore[arg-type]
    assert loaders == dict(zip(TEACHERS, ("transformers", "transformers", "genpercept", "lotus"), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_card_measures_the_full_size_in_its_time(tmp_path: Path):
    status, found, _ = _command(tmp_path)
    assert status == 0
    assert sum(section["seconds"] for section in found["sections"]) < 60 * 8.5
    assert [section["section"] for section in found["sections"] if section["status"] == "failed"] == []
    assert all(math.isfinite(number) and number >= 0 for number in _numbers(found))
