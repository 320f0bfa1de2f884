"""`python -m manifests`, as a user runs it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import manifests
from manifests.__main__ import main
from tests.manifests.small_run import fail_part, write_run


def _run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "manifests", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        encoding="utf-8",
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("finished"))


def test_the_summary_of_a_finished_run_is_a_table_and_exit_status_0(finished: Path) -> None:
    done = _run("summary", finished)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{finished}: 9 images, 4 parts, 2 sources"
    assert lines[2].split()[:6] == ["column", "parts", "labelled", "rejected", "failed", "pending"]
    assert lines[4].split()[:9] == ["dav2", "4/4", "8", "1", "0", "0", "-3", "1.5", "5"]
    end = lines[2].index("pending") + len("pending")
    assert [line[end - 2 : end + 1] for line in lines[3:5]] == [" 0 "] * 2
    assert "dav2: rejected 1 undecodable" in lines
    assert lines[-3:-1] == ["Licences of the labels' weights: dav2 Apache-2.0", "Most restrictive: Apache-2.0 (permissive)"]
    assert lines[-1] == "Finished, no problems."


def test_the_summary_of_an_unfinished_run_says_why_and_exits_with_1(tmp_path: Path) -> None:
    problems = [manifests.Problem(kind="truncated", where="offset 512", message="cut inside a member")]
    run = write_run(tmp_path, problems=problems, commit=["shard.00001", "photos.v1.00000"])
    fail_part(run, "dav2", "shard.00000")
    (manifests.column_dir(run, "dav2") / "shard.00000.a1.zarr").mkdir()
    done = _run("summary", run)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == (
        "Not finished or not sound: 3 of 9 images failed in dav2, 4 of 9 images pending in images, "
        "1 of 9 images pending in dav2, 1 catalogue problem."
    )
    assert "dav2: failed 3 out_of_memory" in done.stdout
    assert "dav2: 1 .zarr folders that no manifest names" in done.stdout
    assert "source shard: 1 truncated, for example offset 512: cut inside a member" in done.stdout


def test_a_run_that_was_stopped_before_it_had_sources_or_columns_is_sound_and_not_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, whole = tmp_path / "run", write_run(tmp_path / "whole", commit=[])
    run.mkdir()
    shutil.copy(whole / "run.json", run)
    for copied, missing in ((None, "no source yet, no column yet"), ("catalog", "no column yet")):
        if copied:
            shutil.copytree(whole / copied, run / copied)
        assert main(["summary", str(run)]) == 1
        assert capsys.readouterr().out.splitlines()[-1] == f"Not finished or not sound: {missing}."
        for command in (["verify", "--deep"], ["repair"], ["clean"]):
            assert main([*command, str(run)]) == 0
        capsys.readouterr()


def test_the_summary_as_json_has_the_same_numbers(finished: Path) -> None:
    done = _run("summary", finished, "--json")
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["complaints"], summary["images_total"]) == (0, [], 9)
    expected = manifests.summarize(finished).columns[1]
    assert summary["columns"][1]["mean"] == expected.mean
    assert summary["columns"][1]["rejected"] == {"undecodable": 1}


def test_verify_is_silent_on_progress_off_a_terminal_and_exits_with_0_for_a_sound_run(finished: Path) -> None:
    done = _run("verify", finished, "--deep")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{finished}: sound\n", "")
    quick = _run("verify", finished)
    assert (quick.returncode, quick.stderr) == (0, "")
    assert "--deep reads the arrays too" in quick.stdout


def test_verify_names_the_damage_and_exits_with_1(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    name = "columns/dav2/shard.00001.a1.zarr/zarr.json"
    (run / name).unlink()
    done = _run("verify", run)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{name}: No such file or directory [missing_file]",
        f"{run}: 1 problem found; `python -m manifests repair` drops what is proven damaged",
    ]
    as_json = _run("verify", run, "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout) == {
        "run_dir": str(run),
        "deep": False,
        "damage": [
            {
                "where": name,
                "kind": "missing_file",
                "message": "No such file or directory",
                "column": "dav2",
                "part": "shard.00001",
            }
        ],
    }


@pytest.mark.parametrize("command", ["summary", "verify", "repair", "clean"])
def test_a_damaged_run_json_is_a_problem_and_not_a_wrong_command(tmp_path: Path, command: str) -> None:
    (tmp_path / "run.json").write_text("{")
    done = _run(command, tmp_path)
    assert done.returncode == 1
    assert "run.json" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["summary", "verify", "repair", "clean"])
def test_what_is_not_a_run_is_a_wrong_command(tmp_path: Path, command: str) -> None:
    done = _run(command, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"python -m manifests: {tmp_path}: not a run: found no run.json in it, "
        "expected a folder made by `python -m pipeline.label`\n"
    )


@pytest.mark.parametrize("arguments", [(), ("summary",), ("sumary", "x"), ("verify", "x", "--fix")])
def test_a_wrong_command_line_exits_with_2(arguments: tuple[str, ...]) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert "usage: python -m manifests" in done.stderr


def test_repair_says_what_it_drops_and_what_to_do_next(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    array = run / "columns/dav2/shard.00001.a1.zarr/context/c/0/0"
    array.write_bytes(bytes(array.stat().st_size))
    assert _run("repair", run, "--quick").stdout == f"{run}: 0 parts dropped\n"
    dry = _run("repair", run, "--dry-run", "--json")
    (dropped,) = json.loads(dry.stdout)["dropped"]
    assert (dropped["column"], dropped["part"], "wrong_sha256" in dropped["why"]) == ("dav2", "shard.00001", True)
    done = _run("repair", run)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("dropped dav2/shard.00001: columns/dav2/shard.00001.a1.zarr/context/c/0/0: found sha256")
    assert done.stdout.splitlines()[-1] == f"{run}: 1 part dropped; to make it again, give the command that made the run"
    assert _run("verify", run, "--deep").returncode == 0


def test_repair_says_how_to_come_by_a_catalogue_and_exits_with_1(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "catalog/shard.json").unlink()
    done = _run("repair", run)
    assert done.returncode == 1
    assert "restore catalog/shard.json if it is lost" in done.stdout
    assert "[unknown_part]" in done.stdout
    (run / "catalog/shard.json").write_bytes(b"{")
    done = _run("repair", run)
    assert done.returncode == 1
    assert "catalog/shard.json: expected JSON" in done.stdout
    assert "Restore the damaged ones from a copy" in done.stdout


def test_clean_names_what_it_removes(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "columns/dav2/shard.00000.b2.zarr").mkdir()
    fail_part(run, "dav2", "shard.00001")
    names = ["columns/dav2/shard.00001.failure.json", "columns/dav2/shard.00000.b2.zarr"]
    dry = _run("clean", run, "--dry-run", "--json")
    assert json.loads(dry.stdout) == {"run_dir": str(run), "dry_run": True, "removed": names}
    done = _run("clean", run)
    assert (done.returncode, done.stdout.splitlines()[:2]) == (0, [f"removed {name}" for name in names])
    assert _run("clean", run).stdout == f"{run}: no litter\n"


def test_clean_refuses_while_the_run_is_in_use(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    with manifests.hold_run(run, exclusive=False):
        done = _run("clean", run)
    assert (done.returncode, done.stdout) == (2, "")
    assert "in use by a labelling" in done.stderr


def test_compare_exits_with_0_for_equal_runs_and_names_what_differs_in_others(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    same = _run("compare", a, b)
    assert (same.returncode, same.stdout) == (0, "The same, volatile fields aside.\n")
    manifests.manifest_path(b, "dav2", "shard.00001").unlink()
    part = manifests.load_part(b, "dav2", "shard.00002")
    changed = manifests.to_json(dataclasses.replace(part, licence="MIT"))
    manifests.manifest_path(b, "dav2", "shard.00002").write_bytes(changed)
    other = _run("compare", a, b)
    assert other.returncode == 1
    assert other.stdout.splitlines() == [
        "columns/dav2/shard.00001.json: committed in A, nothing in B",
        'columns/dav2/shard.00002.json: licence: "Apache-2.0" in A, "MIT" in B',
        "2 differences",
    ]
    differences = json.loads(_run("compare", a, b, "--json").stdout)["differences"]
    assert differences[1] == {"where": "columns/dav2/shard.00002.json", "field": "licence", "a": '"Apache-2.0"', "b": '"MIT"'}


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    stray = os.fsencode(run / "columns/dav2/shard.00001.a1.zarr") + b"/caf\xe9"
    with open(stray, "wb"):
        pass
    done = _run("verify", run, PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert r"caf\udce9" in done.stdout


def test_more_rejected_images_than_the_labelling_was_allowed_are_a_problem_and_are_named(tmp_path: Path) -> None:
    """As `pipeline.label` judged it when it ended: run.json records what it was told to put up with."""
    allowed = write_run(tmp_path / "allowed", configuration={"max_rejected_fraction": 0.12})
    assert _run("summary", allowed).stdout.splitlines()[-1] == "Finished, no problems."
    run = write_run(tmp_path / "run", configuration={"max_rejected_fraction": 0.1})
    done = _run("summary", run)
    assert done.returncode == 1
    assert "images: rejected shard.00001: shard/Straße 004: image file is truncated [undecodable]" in done.stdout.splitlines()
    excess = "1 of 9 images rejected in {} (more than the share of 0.1 allowed)"
    complaints = [excess.format("images"), excess.format("dav2")]
    assert done.stdout.splitlines()[-1] == f"Not finished or not sound: {', '.join(complaints)}."
    assert json.loads(_run("summary", run, "--json").stdout)["complaints"] == complaints


def test_damaged_sources_that_the_labelling_was_told_to_accept_are_shown_and_no_problem(tmp_path: Path) -> None:
    problems = [manifests.Problem(kind="truncated", where="offset 512", message="cut inside a member")]
    run = write_run(tmp_path, problems=problems, configuration={"allow_damaged_sources": True})
    done = _run("summary", run)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Finished, no problems.")
    assert "source shard: 1 truncated" in done.stdout


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(tmp_path: Path) -> None:
    """As `manifests compare A B | head -1` does it, with more output than a pipe holds."""
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    fingerprint = {f"k{i:05d}": "x" * 100 for i in range(5000)}
    column = dataclasses.replace(manifests.load_column(b, "dav2"), fingerprint=fingerprint)
    manifests.column_record_path(b, "dav2").write_bytes(manifests.to_json(column))
    command = [sys.executable, "-m", "manifests", "compare", str(a), str(b), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "{\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + 13


def test_the_runs_record_stands_for_the_run(finished: Path) -> None:
    done = _run("verify", finished / "run.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{finished}: sound")


@pytest.mark.parametrize("url", ["https://host/run", "file:///run"])
@pytest.mark.parametrize("command", ["summary", "verify", "repair", "clean", "compare"])
def test_a_url_is_refused_in_words_and_never_taken_for_a_folder(
    tmp_path: Path, command: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path(url))  # what a command that takes it for a path would find
    with pytest.raises(SystemExit) as exit_status:
        main([command, url] + [url] * (command == "compare"))
    assert exit_status.value.code == 2
    assert "a URL that nothing is written to" in capsys.readouterr().err
