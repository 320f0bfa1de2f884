"""`python -m tests.faults.train_campaign --kills 12 --seed 0`: a training killed at random moments ends with the same weights.

Every option that keeps a state is on, two processes read ahead, and the epochs are shorter than the intervals between states.
The command is killed after a random number of steps and a random part of one, and run again, until it has been killed often
enough and has ended; its weights are then compared, bit for bit, with those of a training that was never interrupted.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.training_run import write_run, write_student

_STEPS = 60
_OPTIONS = (
    "--device cpu --batch-size 5 --accumulation 2 --lr-encoder 1e-3 --lr-decoder 1e-3 --warmup-steps 2 --checkpoint-every 7 "
    "--loader-workers 2 --ema-decay 0.9 --anchor-weight 0.1 --color-jitter 0.4 --trim-fraction 0.1 --picture-every 9"
)


def _command(folder: Path, output: Path) -> list[str]:
    places = ["--run", str(folder / "run"), "--student", str(folder / "student"), "--output", str(output)]
    return [sys.executable, "-m", "pipeline.train", *places, "--steps", str(_STEPS), *_OPTIONS.split()]


def _steps_taken(output: Path) -> int:
    path = output / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _kill_at_random(command: list[str], output: Path, draw: random.Random) -> bool:
    """Whether it was killed before it had ended."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    target, since = draw.randint(1, 12), None
    while process.poll() is None:
        # Lines of an earlier attempt are dropped at the start, so what counts is what is added from then on.
        taken = _steps_taken(output)
        since = taken if since is None or taken < since else since
        if taken >= since + target:
            time.sleep(draw.random() * 0.3)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.01)
    assert process.returncode == 0, process.returncode
    return False


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw, kills, runs, different = random.Random(asked.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder / "run")
        write_student(folder / "student")
        subprocess.run(_command(folder, folder / "whole"), check=True, stderr=subprocess.DEVNULL)
        weights = (folder / "whole" / "model.safetensors").read_bytes()
        while kills < asked.kills:
            output, runs = folder / f"torn{runs}", runs + 1
            while _kill_at_random(_command(folder, output), output, draw):
                kills += 1
            equal = (output / "model.safetensors").read_bytes() == weights
            different += not equal
            print(f"run {runs}: {'equal' if equal else 'DIFFERENT'} after {kills} kills in all", flush=True)
    print(f"{kills} kills in {runs} trainings, {different} of which differ")
    return 1 if different else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(_main())
