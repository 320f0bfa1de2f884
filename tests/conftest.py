"""Shared ground: array shapes checked while tests run, small checkpoints in the hub's formats, and a small labelled run."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
import torch
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  # the hook finds it as an attribute

install_import_hook(["stages"], "tests.typecheck.check")

from hypothesis import HealthCheck, settings  # noqa: E402
from PIL import Image  # noqa: E402

from pipeline.label.command import label  # noqa: E402
from pipeline.label.config import LabelConfig  # noqa: E402
from stages.demo_networks import OneStepDiffusion, build_depth_anything, save_depth_anything  # noqa: E402
from stages.labelling.teacher import TeacherSpec  # noqa: E402
from stages.scenes import render_scene  # noqa: E402
from stages.views import ViewPlan  # noqa: E402

# No example is too slow where other work keeps the machine busy. The examples are drawn from the test's own code, so that what
# was green stays so; `make campaign` draws new ones each time (profile new-examples).
settings.register_profile("same-examples", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("new-examples", settings.get_profile("same-examples"), derandomize=False)
settings.load_profile("same-examples")

SIDE_PX = 48
PLAN = ViewPlan(context="whole", context_px=SIDE_PX, patch_px=SIDE_PX, min_image_px=8)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `save_checkpoints` makes."""
    return save_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def save_checkpoints(folder: Path) -> Path:
    """A folder with `primary`, `assistant` and `student`: small random networks, saved as the published ones are."""
    torch.manual_seed(7)
    for name in ("primary", "student"):
        model = build_depth_anything(hidden=24, layers=4, heads=2, patch_px=12, fusion=16, image_px=SIDE_PX)
        save_depth_anything(model, folder / name, torch.float16, SIDE_PX)
    OneStepDiffusion(vae_channels=(4, 4, 8), unet_channels=(8, 8, 24), group=4).save(folder / "assistant", torch.float16)
    (folder / "assistant/training.json").write_text('{"depth_space": "disparity_affine_invariant"}')
    return folder


def teacher_spec(checkpoints: Path, name: str, loader: str) -> TeacherSpec:
    """The spec of one of the small teachers."""
    return TeacherSpec(
        name=name,
        loader=loader,  # type: ignore[arg-type]
        checkpoint=str(checkpoints / name),
        depth_space="disparity_affine_invariant",
        licence="Apache-2.0",
    )


def label_config(run: Path, sources: tuple[str, ...], checkpoints: Path, **changes: object) -> LabelConfig:
    """The configuration that most tests label with: small teachers, small views, no Ray."""
    settings: dict[str, object] = {
        "plan": PLAN,
        "teachers": {
            "primary": teacher_spec(checkpoints, "primary", "transformers"),
            "assistant": teacher_spec(checkpoints, "assistant", "genpercept"),
        },
        "part_size": 4,
        "workers": 0,
    }
    return LabelConfig(run=run, sources=sources, **(settings | changes))  # type: ignore[arg-type]


def with_teachers(config: LabelConfig, *teachers: TeacherSpec) -> LabelConfig:
    """The configuration with these teachers too, or in place of those of their names."""
    return replace(config, teachers={**config.teachers, **{teacher.name: teacher for teacher in teachers}})


def picture_bytes(image: Image.Image, suffix: str = "png", **options: object) -> bytes:
    """The picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
    return buffer.getvalue()


@cache
def scene_bytes(seed: int, side_px: int = 88) -> bytes:
    """A rendered scene as a PNG file; rendered once in a process."""
    return picture_bytes(Image.fromarray(render_scene(seed, height_px=side_px, width_px=side_px).rgb))


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar with these members, in order."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="session")
def scenes_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes and one broken file, in WebDataset's layout."""
    members = {f"{seed:04d}.png": scene_bytes(seed) for seed in range(10)}
    members |= {"0003.json": b"{}", "broken.jpg": b"\xff\xd8\xff\xe0 not a picture"}
    return write_tar(tmp_path_factory.mktemp("sources") / "scenes.tar", members)


@pytest.fixture(scope="session")
def labelled_run(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path, scenes_tar: Path) -> Path:
    """A finished run over `scenes_tar`: three parts, three columns. Tests must not change it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    report = label(label_config(run, (str(scenes_tar),), checkpoints))
    assert not report.failures
    return run
