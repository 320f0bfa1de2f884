"""`python -m benchmarks.predict`: what `predict` costs beside the bare network, as ratios taken in one run on one machine.

The same photographs, batches and threads of the network on both sides: bare `predict` on pictures that are ready in memory, and
the command from file to files, loaded networks and all. Sides run in turns, several times; medians are reported. Then CPU time
per photograph of each step alone, which other work has little influence on. Prints Markdown tables for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import in_turns, ratios, with_range
from benchmarks.worker import photograph
from pipeline.predict.command import PredictConfig, make_results
from pipeline.predict.files import find_photographs
from pipeline.predict.progress import PredictProgress
from pipeline.train.config import DEMO_STUDENT
from stages.models import DepthModel
from stages.models.find import find_model
from stages.prediction import PicturePredictor, encode_color_jpeg, encode_depth_png
from stages.sources.photographs import decode_upright

_BATCH = 4
_SCENES = 16


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32, help="photographs")
    parser.add_argument("--size", type=int, nargs=2, default=(1200, 800), help="width and height of each")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each side of a ratio gets")
    parser.add_argument("--photographs", type=Path, help="a folder of your own, of one size, in place of rendered ones")
    arguments = parser.parse_args(given)
    model = find_model(str(DEMO_STUDENT), input_px="stated", device="cpu").load("cpu")
    with tempfile.TemporaryDirectory() as folder:
        photographs = arguments.photographs or _write(Path(folder) / "photographs", arguments.images, *arguments.size)
        bench = _Bench(model, photographs, Path(folder) / "results")
        print("| threads of the network | " + " | ".join(_SIDES) + " |\n|" + "---|" * (1 + len(_SIDES)))
        for threads in dict.fromkeys((1, os.cpu_count() or 1)):
            print(f"| {threads} | " + " | ".join(bench.ratios(threads, arguments.rounds)) + " |")
        print("\n| step | CPU ms per photograph |\n|---|---|")
        for step, cpu_ms in bench.steps().items():
            print(f"| {step} | {cpu_ms:.1f} |")


def _write(folder: Path, images: int, width: int, height: int) -> Path:
    folder.mkdir()
    contents = [photograph(seed, width, height) for seed in range(min(images, _SCENES))]
    for number in range(images):
        (folder / f"{number:06d}.jpg").write_bytes(contents[number % _SCENES])
    return folder


_SIDES = {"bare `predict`, ms per photograph": None, "map and colours / bare": True, "map alone / bare": False}
"""The columns of the table: whether the command also writes colours."""


class _Bench:
    def __init__(self, model: DepthModel, photographs: Path, results: Path) -> None:
        self._model, self._photographs, self._results = model, photographs, results
        self._contents = [path.read_bytes() for path in sorted(photographs.iterdir())]
        self._pictures = [np.asarray(decode_upright(content)) for content in self._contents]
        self._attempts = itertools.count()

    def ratios(self, threads: int, rounds: int) -> list[str]:
        """A row of the table: what the bare network takes, and the speed of the whole path as a share of its."""
        torch.set_num_threads(threads)
        taken = in_turns(
            {"bare": self.bare, "both": partial(self.whole, True), "map": partial(self.whole, False)}, rounds=rounds
        )
        bare_ms = 1000 * statistics.median(taken["bare"]) / len(self._pictures)
        return [f"{bare_ms:.0f}", *(with_range(ratios(taken["bare"], taken[side])) for side in ("both", "map"))]

    def bare(self) -> list[np.ndarray]:
        """The network's own work: every map, at its photograph's size."""
        predictor = PicturePredictor(self._model, batch_size=_BATCH)
        starts = range(0, len(self._pictures), _BATCH)
        return [values for start in starts for values in predictor.predict(self._pictures[start : start + _BATCH])]

    def whole(self, color: bool) -> None:
        """From files to files, in a folder of its own. Raises RuntimeError where one failed."""
        output = self._results / str(next(self._attempts))
        config = PredictConfig(inputs=(self._photographs,), model="demo", output=output, color=color, batch_size=_BATCH)
        found, _ = find_photographs(config.inputs, output)
        with PredictProgress(total=len(found), done=0) as progress:
            make_results(self._model, found, config=config, recipe={}, progress=progress)
        if progress.made != len(self._pictures):
            raise RuntimeError(f"{progress.made} of {len(self._pictures)} photographs were made")

    def steps(self) -> dict[str, float]:
        """CPU ms per photograph, of each step in one thread, and of all that the process does for the whole path."""
        torch.set_num_threads(1)
        space, maps = PicturePredictor(self._model, batch_size=_BATCH).depth_space, self.bare()
        calls: dict[str, Callable[[], object]] = {
            "decode": lambda: [np.asarray(decode_upright(content)) for content in self._contents],
            "bare `predict`": self.bare,
            "colours, as JPEG": lambda: [encode_color_jpeg(values, space) for values in maps],
            "map, as PNG of 16 bits": lambda: [encode_depth_png(values, space, {}) for values in maps],
            "all of the command": partial(self.whole, True),
        }
        return {step: min(_cpu_ms(call) for _ in range(3)) / len(maps) for step, call in calls.items()}


def _cpu_ms(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return 1000 * (time.process_time() - begun)


if __name__ == "__main__":
    main()
