"""The report of a run and its student says what both are, unfinished ones too, and nothing that its numbers contradict."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifests.run import manifest_path
from pipeline.agreement import main as compare
from pipeline.report.command import main
from pipeline.report.page import Measure, Scenes, Score, ScoreTable
from pipeline.report.seen import change_sentence
from pipeline.report.training import read_training
from pipeline.train.command import train
from pipeline.train.config import TrainConfig
from stages.agreement import agreement
from stages.label_store import Label, open_run
from stages.models.find import find_model
from tests.pipeline.report.conftest import HOSTILE
from tests.pipeline.report.test_page import Page
from tests.pipeline.train.trainings import interrupt_at


def _documents(page: Path) -> dict[str, dict]:
    found = re.search(r'id="documents">(.*?)</script>', page.read_text(encoding="utf-8"), flags=re.S)
    assert found
    return json.loads(found[1])


def test_it_shows_labels_curves_before_and_after_costs_licences_and_what_to_try(report: Path, run: Path, student: Path):
    html = report.read_text(encoding="utf-8")
    page = Page(html)
    for heading in ("Agreement with the labels of primary", "What was rejected", "What it cost", "Licences of the weights"):
        assert heading in page.text
    assert "Of 6 photographs the teachers have labelled: assistant 5; primary 5." in page.text
    assert "damaged: for the test" in page.text
    assert "there is no ground truth here" in page.text
    assert "What binds the student most: unknown" in page.text
    assert f"python -m pipeline.predict --model {student} photos/ --output maps" in page.text
    assert len(page.all("svg")) >= 5  # the losses that are not 0, and two of all photographs
    captions = [picture["text"] for picture in _documents(report)["0.0"]["pictures"]]
    assert captions[:5] == [
        "Photograph",
        "primary, whole",
        "primary, 4 close-ups",
        "assistant, whole",
        "assistant, 4 close-ups",
    ]
    assert captions[5:7] == ["student before", "student after"]
    assert "/work" not in html.replace(str(run), "").replace(str(student), "")


def test_the_numbers_are_the_agreement_of_the_students_maps_with_the_labels(report: Path, run: Path, settings: TrainConfig):
    opened, found = open_run(run), {}
    for name, checkpoint in (("student before", settings.student), ("student after", str(settings.output))):
        model, values = find_model(checkpoint, device="cpu").load("cpu"), []
        for number in range(5):
            label, picture = opened["primary"].numbered(number).context, opened.pictures.numbered(number).picture
            disparity = model.predict(picture[None])[0]
            own = Label(values=disparity, valid=np.isfinite(disparity))
            space = model.spec.depth_space
            assert space
            values.append(agreement(label, own, opened["primary"].depth_space, space).abs_rel)
        found[name] = np.mean(values)
    text = " ".join(Page(report.read_text(encoding="utf-8")).text.split())
    assert f"AbsRel {found['student before']:.4f} → {found['student after']:.4f}" in text


def test_what_a_key_holds_is_text(report: Path):
    html = report.read_text(encoding="utf-8")
    page = Page(html)
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert [a.get("type") for a in page.all("script")] == ["application/json", None]
    assert "\u202e" not in html.replace("\\u202e", "")
    assert "\x1b" not in html
    assert HOSTILE.partition("\u202e")[0] in page.text


def test_a_run_without_a_student_and_one_without_labels_say_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(run), "-o", str(tmp_path / "page")]) == 0
    page = Page((tmp_path / "page" / "report.html").read_text(encoding="utf-8"))
    assert "No student was named: this is of the labels alone." in page.text
    assert f"python -m pipeline.train --run {run} --output students/mine" in page.text
    assert "student after" not in page.text
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    for column in ("primary", "assistant"):
        for part in ("scenes.00000", "scenes.00001"):
            manifest_path(copy, column, part).unlink()
    assert main([str(copy), "-o", str(tmp_path / "page")]) == 0  # a report that is there is replaced
    page = Page((tmp_path / "page" / "report.html").read_text(encoding="utf-8"))
    assert "6 of 6 images pending in primary" in page.text
    assert "python -m pipeline.label" in page.text
    assert "No student was named" in capsys.readouterr().out


def test_a_training_that_has_not_ended_is_shown_as_far_as_it_is(settings: TrainConfig, run: Path, tmp_path: Path):
    interrupt_at(4, replace(settings, output=tmp_path / "begun"))
    with (tmp_path / "begun" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "total": 0.')  # cut by the machine's end
    assert main([str(run), str(tmp_path / "begun"), "-o", str(tmp_path / "page.html")]) == 0
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "has not ended: it is at step 5 of 8, and there is no student to look at yet" in page.text
    assert page.all("svg")
    assert "student after" not in page.text


def test_a_student_that_began_with_random_weights_has_no_before(settings: TrainConfig, run: Path, tmp_path: Path):
    config = replace(settings, output=tmp_path / "new", from_scratch=True, steps=2, feature_weight=0.0)
    train(config)
    training = read_training(str(tmp_path / "new"), "cpu")
    assert (list(training.models), training.reference) == (["student after"], "primary")
    assert list(training.notices) == ["There is no student before: all its weights were random at the start."]


def test_a_model_of_others_is_shown_without_curves(settings: TrainConfig):
    training = read_training(settings.student, "cpu")
    assert (list(training.models), training.curves()) == (["student after"], [])
    assert "has neither metrics.jsonl nor settings of a training" in training.notices[0]


def test_other_photographs_are_shown_without_a_number(run: Path, student: Path, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (60, 40), "teal").save(tmp_path / "photos/<b>.png")
    (tmp_path / "photos/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    arguments = [str(run), str(student), "--photos", str(tmp_path / "photos"), "-o", str(tmp_path / "page.html")]
    assert main([*arguments, "--images", "2", "--examples", "2"]) == 0
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "No teacher has labelled these: there is no number. 1 of them do not open." in page.text
    assert [entry["key"].rpartition("/")[2] for entry in _documents(tmp_path / "page.html").values()][-1] == "<b>.png"


def test_the_commands_of_the_documentation_run(
    run: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    text = (Path(__file__).parents[3] / "docs/report.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in re.findall(r"^    python -m pipeline\.report (.+)$", text, flags=re.M)]
    assert len(commands) == 3
    monkeypatch.chdir(tmp_path)
    for link, target in (("runs/mine", run), ("students/mine", student)):
        Path(link).parent.mkdir()
        Path(link).symlink_to(target)
    Path("more").mkdir()
    Image.new("RGB", (60, 40), "teal").save("more/a.png")
    for arguments in commands:
        assert main([*arguments, "--images", "2", "--examples", "1"]) == 0, capsys.readouterr()
    assert "runs/mine" in Path("report.html").read_text(encoding="utf-8")


def test_where_the_teachers_were_compared_their_agreement_is_told(run: Path, tmp_path: Path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    assert compare([str(copy), "--workers", "0"]) == 0
    assert main([str(copy), "-o", str(tmp_path / "page.html")]) == 0
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Over the whole run, after alignment. Farthest apart by AbsRel: assistant and primary:" in page.text


def test_what_cannot_be_is_refused_in_words(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "thesis.html").write_text("<p>mine")
    for arguments, words in (
        ([str(run), "-o", str(tmp_path / "thesis.html")], "found a file that is no report"),
        ([str(run), "./nowhere", "-o", str(tmp_path / "a.html")], "./nowhere: found no such folder"),
        ([str(tmp_path), "-o", str(tmp_path / "a.html")], "run.json"),
        ([str(run), "--photos", "x.jpg", "-o", str(tmp_path / "a.html")], "--photos are shown to a student"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "thesis.html").read_text() == "<p>mine"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.3, 0.2, "the trained student is nearer to the labels of primary than"),
        (0.2, 0.3, "the trained student is farther from the labels of primary than"),
        (0.20004, 0.20001, "the trained student is as far from the labels of primary as"),
    ],
)
def test_what_is_said_of_the_student_is_what_its_numbers_say(before: float, after: float, words: str):
    rows = [Score(name="student before", values=[before]), Score(name="student after", values=[after])]
    measures = [Measure(name="AbsRel", direction="lower")]
    assert words in change_sentence(ScoreTable(heading="", note="", measures=measures, rows=rows), "primary")
    assert Scenes(before=[0.1, 0.2, 0.3], after=[0.2, 0.1, 0.3]).sentence.endswith("got better on 1 of 3, and worse on 1.")
