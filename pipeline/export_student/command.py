"""`python -m pipeline.export_student MODEL -o DIR --onnx`: a student as a folder to upload, and as ONNX.

DIR gets the student's weights, configuration and model card; with --onnx also onnx/model.onnx, which takes pictures of any size
and number and is held against PyTorch at the end. --push-to-hub uploads the folder. docs/export-student.md says more.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import manifests
from manifests.checker import printable
from manifests.errors import RefusedError
from pipeline.config import answer_version, folder_problems, url_problems
from pipeline.exits import DONE, REFUSED, say
from stages.distillation.student import CARD, PREPROCESSOR, WEIGHTS
from stages.models.checkpoints import checkpoint_folder, is_hub_id

_PROGRAM = "pipeline.export_student"
FILES = ("config.json", PREPROCESSOR, CARD, WEIGHTS)
_ONNX_START = "<!-- onnx -->"


@dataclass(frozen=True, kw_only=True)
class ExportStudentConfig:
    """A student as a folder to upload, and as ONNX."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The student: a folder, or a hub id."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write; files of these names in it are replaced."""
    onnx: bool = False
    """Also write onnx/model.onnx and compare it with PyTorch."""
    float16: bool = False
    """With --onnx: onnx/model_fp16.onnx in its place, whose weights and inner values are float16."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    push_to_hub: Annotated[str | None, tyro.conf.arg(metavar="REPO")] = None
    """Upload the folder to this repository of the Hugging Face hub (owner/name), made where missing; log in before by
    `hf auth login`. The student must have a model card."""
    public: bool = False
    """With --push-to-hub: a repository that is made is public; private without it."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        found = folder_problems("-o", self.output) + [problem for problem in url_problems(self) if "push" not in problem]
        if self.float16 and not self.onnx:
            found.append("--float16 is of the ONNX file: give --onnx too")
        if self.push_to_hub is not None and not (is_hub_id(self.push_to_hub) and self.push_to_hub.count("/") == 1):
            found.append(f"--push-to-hub {self.push_to_hub}: expected owner/name")
        if Path(self.model).is_dir() and self.output.exists() and self.output.samefile(self.model):
            found.append(f"-o {self.output}: the student's own folder; expected another one")
        return found


def main(argv: Sequence[str] | None = None) -> int:
    answer_version(sys.argv[1:] if argv is None else argv)
    config = tyro.cli(ExportStudentConfig, prog="python -m pipeline.export_student", description=__doc__, args=argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if problems := config.problems():
        print(*(printable(f"{_PROGRAM}: {problem}") for problem in problems), sep="\n", file=sys.stderr)
        return REFUSED
    try:
        export_student(config)
    except (Exception, KeyboardInterrupt) as error:
        return say(_PROGRAM, error)
    return DONE


def export_student(config: ExportStudentConfig) -> None:
    """Writes the folder, and uploads it where that was asked for.

    Raises RefusedError and FileNotFoundError for what is no student or cannot be exported, OtherMapsError for an ONNX file that
    says something else, and OSError where files cannot be written or the hub does not take them.
    """
    source = checkpoint_folder(config.model, config.revision)
    if missing := [name for name in FILES if name != CARD and not (source / name).is_file()]:
        raise RefusedError(f"{config.model}: found no {', '.join(missing)}, expected a student as `pipeline.train` saves it")
    if config.push_to_hub and not (source / CARD).is_file():
        raise RefusedError(
            f"{config.model}: found no {CARD}, expected a model card that states the licence, to be uploaded too"
        )
    if config.onnx:
        _write_onnx(config, source)
    config.output.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if name != CARD and (config.output / name).exists():
            (config.output / name).unlink()
        if name != CARD:
            shutil.copyfile(source / name, config.output / name)
    if (source / CARD).is_file():
        manifests.write_replacing(config.output / CARD, _card(source, config).encode("utf-8"))
        print(printable(f"{config.output}: ready to upload; its model card ({CARD}) states the licence."))
    else:
        print(
            printable(
                f"{config.output}: written, without a model card: {config.model} has none; write a {CARD} with its licence."
            )
        )
    if config.push_to_hub:
        _push(config)


def _onnx_name(config: ExportStudentConfig) -> str:
    return "onnx/model_fp16.onnx" if config.float16 else "onnx/model.onnx"


def _write_onnx(config: ExportStudentConfig, source: Path) -> None:
    from pipeline.export_student.onnx_file import refuse_without_packages, write_onnx

    refuse_without_packages()
    path = config.output / _onnx_name(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    print(printable(f"Tracing {config.model}, which takes a minute or more ..."), flush=True)
    found = write_onnx(source, path, float16=config.float16)
    print(printable(f"{path}: {path.stat().st_size / 1e6:.1f} MB; {found}"))


def _card(source: Path, config: ExportStudentConfig) -> str:
    """The student's card, which says of the ONNX file how it is used."""
    text = (source / CARD).read_text(encoding="utf-8")
    if not config.onnx or _ONNX_START in text:
        return text
    section = (
        f"`{_onnx_name(config)}` takes `pixel_values`, float32 [b, 3, h, w], as the image processor here makes them, of any "
        "number and of sides that are multiples of a patch, and gives `predicted_depth`, float32 [b, h, w]."
    )
    return f"{text.rstrip()}\n\n{_ONNX_START}\n## ONNX\n\n{section}\n"


def _push(config: ExportStudentConfig) -> None:
    from huggingface_hub import HfApi

    api, repository = HfApi(), str(config.push_to_hub)
    api.create_repo(repository, private=not config.public, exist_ok=True)
    patterns = [*FILES, "onnx/*.onnx"]
    commit = api.upload_folder(repo_id=repository, folder_path=config.output, allow_patterns=patterns)
    print(printable(f"uploaded by huggingface_hub: {commit}"))
