"""The store is readable without us: the program in docs/format.md reads a part where our packages cannot be imported."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROGRAM = (Path(__file__).parents[1] / "docs/format.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
SAVE = """
assert not {"stages", "manifests", "pipeline"} & set(sys.modules)
np.savez(sys.argv[5], label=label, boxes=patch_boxes, rgb=rgb, **{f"patch{i}": v for i, v in enumerate(patch_labels)})
"""


def _read_without_us(folder: Path, run: Path, column: str, part: str, row: int) -> dict[str, np.ndarray]:
    # Isolated: neither the working folder nor PYTHONPATH is searched.
    command = [sys.executable, "-I", "-c", PROGRAM + SAVE, str(run), column, part, str(row), str(folder / f"{part}-{row}.npz")]
    subprocess.run(command, check=True, cwd=folder)
    with np.load(folder / f"{part}-{row}.npz") as read:
        return dict(read)


@pytest.fixture(scope="module")
def last_part(labelled_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[dict[str, np.ndarray]]]:
    """The manifest of the last part, and what the program reads of its labelled images."""
    path = sorted((labelled_run / "columns/primary").glob("*.json"))[-1]
    manifest, folder = json.loads(path.read_text()), tmp_path_factory.mktemp("read")
    rows = [row for row, image in enumerate(manifest["images"]) if image["status"] == "labelled"]
    return manifest, [_read_without_us(folder, labelled_run, "primary", path.stem, row) for row in rows]


def test_the_labels_of_a_part_have_the_statistics_of_its_manifest(last_part: tuple[dict, list[dict[str, np.ndarray]]]) -> None:
    statistics, reads = last_part[0]["statistics"], last_part[1]
    views = [value for read in reads for name, value in read.items() if name == "label" or name.startswith("patch")]
    values = np.concatenate([view.ravel() for view in views])
    assert (len(views), values.size) == (statistics["views"], statistics["pixels"])
    assert np.isfinite(values).all()
    step = 2 * statistics["max_quantisation_error"] + 1e-9
    for name, found in (("min", values.min()), ("max", values.max()), ("mean", values.mean())):
        assert found == pytest.approx(statistics[name], abs=step), name


def test_the_picture_is_the_photograph_and_label_and_patches_have_their_places_in_it(
    last_part: tuple[dict, list[dict[str, np.ndarray]]], scenes_tar: Path
) -> None:
    manifest, reads = last_part
    keys = [image["key"] for image in manifest["images"] if image["status"] == "labelled"]
    assert len(keys) == len(reads) >= 1
    for key, read in zip(keys, reads, strict=True):
        with tarfile.open(scenes_tar) as tar:
            member = tar.extractfile(f"{key}.png")
            assert member is not None
            photograph = Image.open(io.BytesIO(member.read())).convert("RGB")
        height, width = read["label"].shape
        assert read["rgb"].shape == (height, width, 3)
        assert np.abs(read["rgb"].astype(float) - photograph.resize((width, height), Image.Resampling.BICUBIC)).mean() < 3
        covered = np.zeros((height, width), bool)
        for index, (top, left, box_height, box_width) in enumerate(read["boxes"]):
            assert read[f"patch{index}"].shape == (box_height, box_width) == covered[top:, left:][:box_height, :box_width].shape
            covered[top : top + box_height, left : left + box_width] = True
        assert covered.all()
