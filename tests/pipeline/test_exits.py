"""Every command ends by the one table of docs/exit-status.md: foreseen errors in a line, bugs with their traceback."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import manifests
import manifests.__main__
import pipeline
import stages
from manifests.errors import DistillError, RefusedError
from pipeline.exits import exit_status, say
from tests.manifests.small_run import write_run

PAGE = (Path(__file__).parents[2] / "docs/exit-status.md").read_text(encoding="utf-8")
COMMANDS = ("label", "train", "evaluate", "predict", "show", "report", "export", "export_student")


def _errors(kind: type[DistillError] = DistillError) -> list[type[DistillError]]:
    return [kind, *(deeper for below in kind.__subclasses__() for deeper in _errors(below))]


def test_every_error_that_is_ours_has_the_root_and_a_status_of_the_table() -> None:
    for package in (manifests, stages, pipeline):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                found = vars(importlib.import_module(module.name)).values()
                ours = [kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception)]
                named = {kind for kind in ours if kind.__module__ == module.name and not kind.__name__.startswith("_")}
                internal = {"TooManyProblemsError", "FaultError"}  # caught where they are raised
                assert {kind for kind in named if not issubclass(kind, DistillError)} <= {
                    kind for kind in named if kind.__name__ in internal
                }, module.name
    assert {kind.exit_status for kind in _errors()} == {1, 2, 130}
    assert all(f"\n| {status} |" in PAGE for status in (0, 1, 2, 130))
    assert issubclass(RefusedError, ValueError)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RefusedError("found x"), 2),
        (manifests.RunInUseError("held"), 2),
        (FileNotFoundError(2, "No such file", "x"), 2),
        (OSError(28, "No space left", "x"), 1),
        (MemoryError(), 1),
        (ModuleNotFoundError("pcodec"), 1),
        (torch.OutOfMemoryError("8 GiB"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_is_foreseen_is_said_in_a_line(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert say("program", error) == status
    assert capsys.readouterr().err.startswith("program: ")


@pytest.mark.parametrize("error", [ValueError("a"), RuntimeError("b"), KeyError("c"), AssertionError(), ZeroDivisionError()])
def test_a_bug_is_raised_again(error: Exception) -> None:
    assert exit_status(error) is None
    with pytest.raises(type(error)):
        say("program", error)


def _arguments(command: str, tmp_path: Path) -> list[str]:
    nothing, out = str(tmp_path / "nothing"), str(tmp_path / "out")
    return {
        "label": ["--preset", "demo", "--run", out, "--sources", nothing, "--workers", "0"],
        "train": ["--preset", "demo", "--run", nothing, "--output", out],
        "evaluate": ["--model", nothing, "--scenes", "1"],
        "predict": ["--model", nothing, str(tmp_path), "--output", out],
        "show": [nothing, "a.jpg"],
        "report": [nothing, "-o", out],
        "export_student": [nothing, "-o", out],
        "export": [nothing, "-o", out, "--format", "folder"],
    }[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_where_a_path_leads_is_refused_by_every_command(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main: Callable[..., int] = importlib.import_module(f"pipeline.{command}.command").main
    try:
        status = main(_arguments(command, tmp_path))
    except SystemExit as error:  # of a configuration that cannot be
        status = error.code
    assert status == 2
    said = capsys.readouterr().err
    assert "nothing" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bug_in_a_command_shows_its_traceback(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"pipeline.{command}.command")
    (tmp_path / "nothing").mkdir()  # so that the configuration has no problems

    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(module, {"label": "label_run", "report": "run_report"}.get(command, command), broken)
    with pytest.raises(ValueError, match="a bug"):
        module.main(_arguments(command, tmp_path))


def test_a_run_that_is_held_is_refused_by_whoever_wants_it_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoints: Path
) -> None:
    run = write_run(tmp_path / "run")
    with manifests.hold_run(run, exclusive=False):
        for command in ("clean", "repair"):
            assert manifests.__main__.main([command, str(run)]) == 2
            assert "in use by" in capsys.readouterr().err
