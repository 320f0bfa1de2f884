"""What repair has dropped, labelling makes again with the same bytes; what it cannot drop comes back as its advice says."""

from __future__ import annotations

import shutil
from pathlib import Path

import manifests
from pipeline.label.command import label
from tests.conftest import label_config


def _flip_in_largest_array(run: Path, column: str, part: str) -> None:
    largest = max(manifests.load_part(run, column, part).files, key=lambda file: file.size_bytes)
    path = manifests.column_dir(run, column) / largest.path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_dropped_images_and_labels_and_lost_records_come_back_the_same(
    tmp_path: Path, labelled_run: Path, scenes_tar: Path, checkpoints: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(labelled_run, run)
    assert manifests.verify(run) == []
    _flip_in_largest_array(run, "images", "scenes.00000")
    _flip_in_largest_array(run, "primary", "scenes.00001")
    shutil.move(run / "run.json", tmp_path)
    shutil.move(run / "catalog", tmp_path)
    config = label_config(run, (str(scenes_tar),), checkpoints)
    assert label(config).committed == 0
    report = manifests.repair(run)
    # The same Pillow will make the same JPEG bytes again, so the labels made from them stay: compare proves it below.
    assert [(item.column, item.part) for item in report.dropped] == [("primary", "scenes.00001"), ("images", "scenes.00000")]
    assert label(config).committed == 2
    assert manifests.verify(run) == []
    assert manifests.compare(run, labelled_run) == []
    assert manifests.clean(run) == []
