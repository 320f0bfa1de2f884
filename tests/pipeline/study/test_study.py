"""The whole study at its smallest, through its command: gates, trainings, records, reports, and resuming."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from pipeline.study.command import StudyConfig, main, progress_of

PAGE = Path(__file__).parents[3] / "docs" / "study.md"


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_study_goes_on_from_its_records_and_says_what_is_not_testable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = re.findall(r"^    python -m pipeline.study (.*)$", PAGE.read_text(encoding="utf-8"), re.M)[0]
    arguments = [*shlex.split(command), "--records", "records", "--workers", "0"]
    assert main([*arguments, "--minutes", "0"]) == 130  # the premise is measured, but there is no time to train
    assert sorted(_contents(tmp_path / "records")) == ["known.premise.map-sharp-right.2.json", "known.premise.primary.2.json"]
    assert "not run yet" in (tmp_path / "study" / "report.md").read_text()
    assert main(arguments) == 0
    kept = _contents(tmp_path / "records")
    assert {"known.baseline.rate-0.001.1000.json", "known.baseline.0.json", "known.exact.1.json"} <= kept.keys()
    assert not list((tmp_path / "study" / "students").iterdir())
    found = json.loads((tmp_path / "study" / "report.json").read_text())["families"][0]
    assert found["left"] == 0
    verdicts = {claim["claim"]["name"]: claim["verdict"] for claim in found["claims"]}
    headroom = {gate["metric"]: gate["holds"] for gate in found["headroom"]}
    assert (verdicts["table 2: L_lg"] == "not testable here") == (not headroom["abs_rel"])  # three steps learn next to nothing
    assert verdicts["figure 2: local fit"] != "not run yet"
    page = (tmp_path / "study" / "report.html").read_text()
    assert "Premise: are close-ups better than slices?" in page
    assert not re.search(r'(src|href)="(?!data:)', page)

    (tmp_path / "records" / "known.baseline.1.json").unlink()
    changed = json.loads(kept["known.exact.0.json"])
    changed["what"]["train"]["steps"] = 2
    (tmp_path / "records" / "known.exact.0.json").write_text(json.dumps(changed))
    capsys.readouterr()
    assert main([*arguments, "--only-report"]) == 130
    assert "known.exact.0 (train)" in (tmp_path / "study" / "report.md").read_text()
    assert main(arguments) == 0  # the same weights again, and so the same scores
    again = _contents(tmp_path / "records")
    assert again.keys() == kept.keys()
    for name in kept:
        first, second = json.loads(kept[name]), json.loads(again[name])
        assert (first["what"], first["scores"]) == (second["what"], second["scores"]), name
    assert "/tmp" not in kept["known.baseline.0.json"].decode()


def test_the_records_that_are_shipped_are_of_the_study_as_it_is(tmp_path: Path) -> None:
    """Or the page would state numbers that no call counts."""
    shipped = PAGE.parent / "study" / "records"
    config = StudyConfig(output=tmp_path, records=shipped)
    found = [progress.findings() for progress in progress_of(config)]
    assert sum(len(design.counted) for design in found) == len(list(shipped.glob("*.json")))
    assert [design.differing for design in found] == [[], []]
