"""`python -m tests.faults.campaign --kills 60 --seed 0`: kills at random, run after run, each of which is compared in the end.

Three kinds of kill, drawn in turn: the process of a run without Ray, at a random event on the run's files; the driver of a run
over Ray, with its workers left to themselves; one worker of Ray. The last two come at random moments. After some kills a run is
brought to its end and compared byte by byte, volatile fields aside, with an uninterrupted one. Exit status 1 where one differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.conftest import save_checkpoints, scene_bytes, write_tar
from tests.faults.processes import Zygote, committed, differences, label_arguments, start, workers_of
from tests.faults.steps import Fault, Step

_EVENTS_OF_A_RUN = 1500  # on the files of a run of nine units, about


class _Campaign:
    """The draws, the processes, and the count of what was done to them."""

    def __init__(self, folder: Path, zygote: Zygote, seed: int) -> None:
        self._folder, self._zygote, self._random = folder, zygote, random.Random(seed)
        self.kills = Counter[str]()
        self._source = write_tar(folder / "five.tar", {f"{i}.png": scene_bytes(i, side_px=64) for i in range(5)})
        self._checkpoints = save_checkpoints(folder / "checkpoints")

    def arguments(self, run: Path, workers: int) -> list[str]:
        return label_arguments(run, self._source, self._checkpoints, "--workers", str(workers), "--max-attempts", "9")

    def without_ray(self, run: Path, kills: int) -> int:
        """Kills of the only process; returns how many it took until the run had ended."""
        for done in range(kills):
            nth = self._random.randint(1, _EVENTS_OF_A_RUN // (1 + done))
            ended = self._zygote.run(self.arguments(run, 0), Fault(Step("*", f"{run}/|\\.tar$"), "kill", nth=nth))
            if ended.status != -signal.SIGKILL:
                return done
            self.kills["process"] += 1
        return kills

    def over_ray(self, run: Path, kills: int, victim: str) -> int:
        """Kills of the driver or of a worker, at random moments from its first part on; returns how many."""
        done = 0
        while done < kills:
            already = len(committed(run))
            process = start(self.arguments(run, 2))
            while process.poll() is None and done < kills:
                time.sleep(self._random.random() * 1.5)
                workers = workers_of(process.pid)
                if not workers or (victim == "driver" and len(committed(run)) == already and self._random.random() < 0.7):
                    continue
                os.kill(process.pid if victim == "driver" else self._random.choice(workers), signal.SIGKILL)
                self.kills[victim] += 1
                done += 1
            _, messages = process.communicate()
            if process.returncode == 0:
                return done
            # The command gives up where five workers in a row died before they were ready.
            if process.returncode != -signal.SIGKILL and "died before they were ready" not in messages:
                raise AssertionError(f"{run}: exit status {process.returncode}\n{messages}")
        return done


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--kills-per-run", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Zygote(Path(name)) as zygote:
        campaign, folder = _Campaign(Path(name), zygote, asked.seed), Path(name)
        uninterrupted = folder / "uninterrupted/run"
        assert zygote.run(campaign.arguments(uninterrupted, 0)).status == 0
        ways: list[tuple[str, Callable[[Path, int], int]]] = [
            ("process", campaign.without_ray),
            ("driver", lambda run, kills: campaign.over_ray(run, kills, "driver")),
            ("worker", lambda run, kills: campaign.over_ray(run, kills, "worker")),
        ]
        different = runs = 0
        while campaign.kills.total() < asked.kills:
            kind, way = ways[runs % len(ways)]
            run = folder / f"run{runs}/run"
            kills = way(run, asked.kills_per_run)
            last = zygote.run(campaign.arguments(run, 0))
            found = differences(run, uninterrupted)
            different += bool(found or last.status)
            runs += 1
            print(f"run {runs}: {kills} kills ({kind}), {found or 'equal'}", flush=True)
        print(f"{campaign.kills.total()} kills ({dict(campaign.kills)}) in {runs} runs, {different} of which differ")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(_main())
