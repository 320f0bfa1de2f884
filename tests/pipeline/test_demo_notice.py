"""What comes from the demo's networks is known as such, by weights and by folder; nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.demo_notice import DEMO_CHECKPOINTS, is_of_the_demo, made_by_the_demo
from stages.models.checkpoints import checkpoint_sha256


def test_the_demos_weights_and_folders_are_known_and_others_are_not(checkpoints: Path):
    assert is_of_the_demo(checkpoint_sha256(DEMO_CHECKPOINTS / "assistant"))
    assert made_by_the_demo(str(DEMO_CHECKPOINTS / "student"))
    assert not is_of_the_demo(checkpoint_sha256(checkpoints / "primary"))
    assert not is_of_the_demo(None)
    assert not made_by_the_demo(str(checkpoints / "primary"))
    assert not made_by_the_demo("owner/name")


@pytest.mark.parametrize(
    ("record", "known"),
    [
        ('{"settings": {"student": "demo"}}', True),
        ('{"settings": {"student": "owner/name"}}', False),
        ('{"settings": []}', False),
        ("[1", False),
        ("", False),
    ],
)
def test_a_student_that_began_from_the_demos_is_known_by_its_record(tmp_path: Path, record: str, known: bool):
    (tmp_path / "training.json").write_text(record)
    assert made_by_the_demo(str(tmp_path)) is known
