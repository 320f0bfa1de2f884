"""What goes wrong on one rank alone ends all of them, soon and in words."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.pipeline.train.trainings import ROOT
from tests.training_run import write_run, write_student

_RANK = """
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from manifests.errors import RefusedError
from pipeline.train.ranks import Process
from pipeline.train.command import train
from pipeline.train.config import TrainConfig
from pipeline.train.loop import run_training

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
common = dict(student=str(folder / "student"), batch_size=4, loader_workers=0, device="cpu", warmup_steps=2, checkpoint_every=3)
begun = TrainConfig(run=(folder / "run",), output=folder / "begun", steps=6, **common)
if rank == 0:
    def stop(line):
        if line["step"] == 4:
            raise InterruptedError
    try:
        train(begun, stop)
    except InterruptedError:
        pass
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=240))
process = Process(device="cpu", rank=rank, world_size=2)
unseen = replace(begun, output=folder / "elsewhere") if rank else begun
damaged = TrainConfig(run=(folder / "damaged",), output=folder / "out", steps=6, columns=("primary",), **common)
for config in (unseen, damaged):
    try:
        run_training(config, process, lambda: False)
    except RefusedError as error:
        print(error, flush=True)
"""


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What each of two ranks says of a state that one of them does not see, and then of a label that one cannot read."""
    folder = tmp_path_factory.mktemp("ranks")
    write_run(folder / "run")
    write_student(folder / "student")
    damaged = write_run(folder / "damaged")
    chunk = damaged / "columns/primary/scenes.00001.first.zarr/context/c/0/0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 3] ^= 0xFF
    chunk.write_bytes(bytes(content))
    (folder / "rank.py").write_text(_RANK)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "rank.py"), str(folder)]
    ranks = [subprocess.Popen([*command, rank], env=environment, stdout=subprocess.PIPE, text=True) for rank in ("0", "1")]
    return [rank.communicate(timeout=280)[0].splitlines() for rank in ranks]


@pytest.mark.campaign
def test_ranks_that_would_resume_from_different_steps_are_refused(messages: list[list[str]]) -> None:
    for said in messages:
        assert "rank 1 would resume from step 0, rank 0 from step 3; they differ in step" in said[0]


@pytest.mark.campaign
def test_a_label_that_one_rank_cannot_read_ends_all(messages: list[list[str]]) -> None:
    (first, second) = (said[1] for said in messages)
    assert first == second
    assert re.match(r"rank [01]: ValueError: .*scenes\.00001\.first\.zarr/context: row \d is damaged", first)
