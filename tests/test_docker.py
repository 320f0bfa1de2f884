"""The Dockerfile and the lines of docs/docker.md, by their text: nothing is built here."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent
_PAGE = (ROOT / "docs/docker.md").read_text(encoding="utf-8")
_INSTRUCTIONS = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
_TAKE_A_VALUE = {"--volume", "--gpus", "--shm-size", "--user", "--target", "--tag"}


def _instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile with what it says, its lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def _commands(verb: str) -> list[list[str]]:
    """The page's `docker build` or `docker run` lines, as words."""
    return [shlex.split(line) for line in re.findall(rf"^    docker {verb} (.*)$", _PAGE, flags=re.M)]


def _without_options(words: list[str]) -> list[str]:
    left = iter(words)
    kept = []
    for word in left:
        if kept or not word.startswith("-"):
            kept.append(word)
        elif word in _TAKE_A_VALUE:
            next(left)
    return kept


def test_every_stage_installs_what_is_pinned_and_does_not_run_as_root():
    instructions = _instructions()
    assert {name for name, _ in instructions} <= _INSTRUCTIONS
    stages = [rest.split(" AS ")[1] for name, rest in instructions if name == "FROM"]
    assert stages == ["base", "cpu", "cuda"]
    assert all(rest.split(" AS ")[0] in ("python:${PYTHON}-slim", "base") for name, rest in instructions if name == "FROM")
    for name, rest in instructions:
        if name == "RUN" and "pip install" in rest:
            assert "--constraint constraints.txt" in rest
    for stage in ("cpu", "cuda"):
        start = next(i for i, (name, rest) in enumerate(instructions) if name == "FROM" and rest.endswith(f" AS {stage}"))
        own = instructions[start + 1 :]
        own = own[: next((i for i, (name, _) in enumerate(own) if name == "FROM"), len(own))]
        assert [rest for name, rest in own if name == "USER"] == ["distill"]
        assert [name for name, _ in own][-2:] == ["ENTRYPOINT", "CMD"]


def test_what_is_copied_is_there_and_reaches_the_builder():
    copied = [word for name, rest in _instructions() if name == "COPY" for word in rest.split()[:-1]]
    assert copied
    assert all((ROOT / word).exists() for word in copied)
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    assert sent == set(copied)


def test_the_pages_lines_name_stages_that_are_there_images_that_were_built_and_modules_that_run():
    built = {words[words.index("--tag") + 1]: words[words.index("--target") + 1] for words in _commands("build")}
    assert built == {"distill:cpu": "cpu", "distill:cuda": "cuda"}
    runs = [_without_options(words) for words in _commands("run")]
    assert {image for image, *_ in runs} == set(built)
    for _, module, *options in runs:
        assert find_spec(f"{module}.__main__"), module
        assert options
    for words in _commands("run"):
        assert ("--gpus" in words) == ("distill:cuda" in words)
