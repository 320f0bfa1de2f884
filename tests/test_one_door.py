"""One door to a run's files: `manifests.place`. No other module opens, lists, makes or removes a file of a run.

Read from the syntax trees: every call that touches a file by a path of its own is found, and the module that makes it must be
named here, by the files that it is about. A new module is not: use the door, or say here what it touches.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOOR = (
    *("manifests/durable.py", "manifests/local_folder.py", "manifests/local_new_folder.py", "manifests/lock.py"),
    *("manifests/bucket_folder.py", "manifests/bucket_hold.py", "manifests/bucket_new_folder.py", "manifests/bucket_store.py"),
    "manifests/part_cache.py",
)
"""What is behind the door of a folder on this machine. `lock.py` also locks other folders, for `commit.py`'s callers."""
OTHER_FILES: dict[str, tuple[str, ...]] = {
    "any folder but a run's, by path, for the modules below": ("manifests/commit.py",),
    "the null device, where nobody reads the output": ("manifests/__main__.py",),
    "shared memory: how much is free": ("pipeline/train/shared_memory.py",),
    "checkpoints: weights, their configurations and cards": (
        "stages/demo_networks.py",
        "stages/distillation/student.py",
        "stages/models/assembled.py",
        "stages/models/checkpoints.py",
        "stages/models/diffusion_parts.py",
        "stages/models/find.py",
        "stages/models/genpercept.py",
        "stages/models/located.py",
        "stages/models/stated.py",
        "stages/models/transformers_models.py",
        "pipeline/demo_models.py",
        "pipeline/demo_notice.py",
        "pipeline/label/run.py",
    ),
    "photographs and tars of them, as they are given": (
        "stages/prediction.py",
        "stages/sources/catalogue.py",
        "stages/sources/folders.py",
        "stages/sources/lists.py",
        "stages/sources/parquet.py",
        "stages/sources/photographs.py",
        "stages/sources/source.py",
        "stages/sources/tars.py",
        "pipeline/demo/command.py",
        "pipeline/label/sources.py",
    ),
    "benchmarks and what a model scored on them": (
        "stages/evaluation/benchmark_files.py",
        "stages/evaluation/benchmarks.py",
        "stages/evaluation/fixtures.py",
        "stages/evaluation/pairs.py",
        "pipeline/evaluate/cache.py",
        "pipeline/evaluate/command.py",
        "pipeline/evaluate/config.py",
        "pipeline/evaluate/data.py",
    ),
    "what a training puts out": (
        "pipeline/train/bucket_output.py",
        "pipeline/train/log.py",
        "pipeline/train/on_ray.py",
        "pipeline/train/setup.py",
        "pipeline/train/state.py",
    ),
    "depth maps of a prediction": ("pipeline/predict/files.py",),
    "students exported, and a photograph that matplotlib brings": (
        "pipeline/export_student/command.py",
        "pipeline/export_student/onnx_file.py",
    ),
    "labels exported for other trainers": ("pipeline/export/command.py", "pipeline/export/output.py"),
    "a study: its teachers' files, its students, its records and reports": (
        "pipeline/study/labels.py",
        "pipeline/study/records.py",
        "pipeline/study/report.py",
        "pipeline/study/teachers.py",
        "pipeline/study/work.py",
    ),
    "reports and figures": (
        "pipeline/demo/report.py",
        "pipeline/figures/command.py",
        "pipeline/browse/command.py",
        "pipeline/viewer/assets.py",
        "pipeline/report/command.py",
        "pipeline/report/page.py",
        "pipeline/report/config.py",
        "pipeline/report/training.py",
        "pipeline/show/command.py",
    ),
    "what there is of a demo": ("pipeline/demo/plan.py",),
    "configuration": ("pipeline/config.py",),
    "a folder for a sample's run, which is thrown away whole": ("pipeline/label/estimate.py",),
    "processes, in /proc": ("pipeline/label/ray_pool.py",),
}

_PATH_METHODS = {
    *("open", "read_bytes", "read_text", "write_bytes", "write_text", "touch", "mkdir", "rmdir", "unlink", "rename", "iterdir"),
    *("glob", "rglob", "walk", "exists", "is_file", "is_dir", "is_symlink", "stat", "lstat", "symlink_to", "hardlink_to"),
    *("samefile", "chmod"),
}
_OS = {
    *(
        "open",
        "listdir",
        "scandir",
        "walk",
        "fwalk",
        "stat",
        "lstat",
        "access",
        "link",
        "symlink",
        "rename",
        "renames",
        "replace",
    ),
    *("unlink", "remove", "rmdir", "removedirs", "mkdir", "makedirs", "truncate", "readlink", "chmod", "utime", "mkfifo"),
    *("path.exists", "path.lexists", "path.isfile", "path.isdir", "path.islink", "path.getsize", "path.samefile"),
}
_FUNCTIONS = {
    *("open", "io.open", "safe_open", "save_file", "load_file", "zipfile.ZipFile", "LocalStore"),
    *("np.load", "np.save", "np.savez", "np.memmap", "np.fromfile", "torch.save", "torch.load"),
    *("write_exclusively", "write_replacing", "sha256_file", "make_folder", "fsync_path", "hold_file"),
}
_MODULES = ("shutil.", "tempfile.", "glob.")
_ZARR = re.compile(r"zarr\.(open|create|save|load)\w*\((?!(New)?PartFiles\()")
_DOOR = re.compile(r"(^|[._])place(_of\(.*\))?$")
"""A receiver whose methods are the door's."""
_IN_MEMORY = re.compile(r"(Image\.open|np\.load)\(io\.BytesIO|Image\.open\(file\b|np\.save\(buffer\b")
_KNOWS_RUNS = re.compile(r"\brun_dir\b|\bplace_of\(")
_OF_A_RUN = re.compile(r"\brun_dir\b|\.run\b|\b(column_dir|manifest_path|failure_path|catalogue_path|table_path)\(")


def _file_calls(source: str) -> Iterator[str]:
    """Where a file is touched by a path, be it in a call or as a function that is handed on; in the words of the source."""
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, ast.Call | ast.Attribute) else ""
        handed_on = isinstance(node, ast.Attribute) and text.startswith("Path.") and node.attr in _PATH_METHODS
        if handed_on or (isinstance(node, ast.Call) and _touches_a_file(node, text)):
            yield text


def _touches_a_file(call: ast.Call, text: str) -> bool:
    if _IN_MEMORY.match(text):
        return False
    name = ast.unparse(call.func)
    if _ZARR.match(text) or name.removeprefix("manifests.") in _FUNCTIONS or name.startswith(_MODULES):
        return True
    if name.startswith("os."):
        return name.removeprefix("os.") in _OS
    if not isinstance(call.func, ast.Attribute) or _DOOR.search(ast.unparse(call.func.value)):
        return False
    if call.func.attr == "replace":  # of a path: that of a string takes two arguments, that of a dataclass names its fields
        return len(call.args) == 1 and not call.keywords
    return call.func.attr in _PATH_METHODS


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """The file calls of each module that has any."""
    paths = [path for package in ("manifests", "stages", "pipeline") for path in (ROOT / package).rglob("*.py")]
    calls = {path.relative_to(ROOT).as_posix(): list(_file_calls(path.read_text("utf-8"))) for path in sorted(paths)}
    return {module: texts for module, texts in calls.items() if texts and module not in DOOR}


def test_no_module_touches_a_file_but_those_that_are_named_with_the_files_that_they_touch(found: dict[str, list[str]]):
    named = [module for modules in OTHER_FILES.values() for module in modules]
    assert len(named) == len(set(named))
    unnamed = {module: texts for module, texts in found.items() if module not in named}
    assert unnamed == {}, "use manifests.place for files of a run; name the module in OTHER_FILES for others"
    assert sorted(set(named) - found.keys()) == [], "these touch no file any more: take them out of OTHER_FILES"


def test_modules_that_know_runs_touch_nothing_else_than_what_is_written_here(found: dict[str, list[str]]):
    knowing = {
        module: texts
        for module, texts in found.items()
        if module != "manifests/commit.py" and _KNOWS_RUNS.search((ROOT / module).read_text("utf-8"))
    }
    assert {module: set(texts) for module, texts in knowing.items()} == {
        "manifests/__main__.py": {"os.open(os.devnull, os.O_WRONLY)"},
        "pipeline/config.py": {"path.read_text(encoding='utf-8')", "nearest.is_dir()"},
        "pipeline/label/estimate.py": {"tempfile.TemporaryDirectory(prefix='label-estimate-')"},
        "pipeline/label/sources.py": {"Path(location).exists()", "Path(place).exists()"},
        "pipeline/label/run.py": {"Path(path).is_dir()", "folder.rglob('*.safetensors')"},
        "pipeline/train/bucket_output.py": {
            "(folder / STATES).iterdir()",
            "(self.folder / STATES).glob('step-*.pt')",
            "(self.folder / STATES).mkdir(exist_ok=True)",
            "(self.folder / TENSORBOARD).iterdir()",
            "(self.folder / WEIGHTS).touch()",
            "folder.mkdir()",
            "path.is_file()",
            "self.folder.iterdir()",
            "tempfile.TemporaryDirectory(prefix='training-', ignore_cleanup_errors=True)",
            "zipfile.ZipFile(path)",
        },
        "pipeline/train/setup.py": {
            "(config.output / WEIGHTS).exists()",
            "config.output.mkdir(parents=True, exist_ok=True)",
            "manifests.hold_file(config.output / _HELD, exclusive=True, in_use=in_use)",
        },
    }


def test_no_path_into_a_run_is_given_to_any_of_these_calls(found: dict[str, list[str]]):
    assert {
        module: into for module, texts in found.items() if (into := [text for text in texts if _OF_A_RUN.search(text)])
    } == {}


def test_only_the_door_knows_what_is_behind_it():
    behind = re.compile(
        r"^\s*(from|import) manifests\.(durable|local_\w+|bucket_(folder|new_folder|hold))"
        r"|^\s*from manifests import .*\bdurable\b",
        re.MULTILINE,
    )
    users = [
        path.relative_to(ROOT).as_posix()
        for package in ("manifests", "stages", "pipeline")
        for path in (ROOT / package).rglob("*.py")
        if behind.search(path.read_text("utf-8"))
    ]
    assert sorted(set(users) - set(DOOR)) == ["manifests/commit.py", "manifests/place.py"]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "open(a)",
            "a.open('rb')",
            "(a / 'b').read_bytes()",
            "os.unlink(a)",
            "os.path.exists(a)",
            "a.replace(b)",
            "Path(a).glob('*')",
        ),
        *("zarr.open_group(a)", "zarr.open_array(a, mode='r')", "shutil.rmtree(a)", "manifests.write_exclusively(a, b)"),
        *(
            "folder.iterdir()",
            "map(Path.exists, a)",
            "Image.open(a)",
            "np.load(a)",
            "self._replace.open()",
            "marketplace.unlink()",
        ),
    ],
)
def test_a_file_that_is_touched_is_found(text: str):
    assert list(_file_calls(text))


@pytest.mark.parametrize(
    "text",
    [
        *("place.open(a)", "place_of(a).exists(b)", "manifests.place_of(unit.run_dir).replace(a, b)", "self._place.open(a)"),
        *("a.replace('b', 'c')", "dataclasses.replace(a, b=c)", "replace(a, b=c)", "Image.open(io.BytesIO(a))"),
        *("zarr.open_group(PartFiles(a), mode='r')", "zarr.create_group(NewPartFiles(a))", "queue.remove(a)"),
    ],
)
def test_what_touches_no_file_or_goes_through_the_door_is_not(text: str):
    assert not list(_file_calls(text))
