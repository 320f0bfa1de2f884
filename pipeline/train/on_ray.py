"""Training on several devices or nodes: Ray Train starts the processes and joins them, each runs the same training.

gloo between CPUs, nccl between GPUs. A worker that dies takes the group down, and Ray Train starts it again from the last
state. The output folder must be the same place for all workers.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from manifests.errors import DistillError, RefusedError
from manifests.location import absolute
from pipeline.interrupts import stop_requested
from pipeline.ray_start import start_ray
from pipeline.train.config import TrainConfig
from pipeline.train.log import Follower
from pipeline.train.loop import STOPPING, TrainingInterruptedError, TrainingStoppedError, TrainResult, run_training
from pipeline.train.ranks import Process, on_all_ranks
from pipeline.train.setup import is_finished

STOP = "stop-requested"
_RAY = f".ray-{os.getpid()}"  # what Ray Train keeps while it runs
_FAILURES: dict[str, type[Exception]] = {kind.__name__: kind for kind in (TrainingStoppedError, RefusedError)}


class WorkersFailedError(DistillError, RuntimeError):
    """The workers ended again and again without a reason of our own; the message is Ray Train's."""


def train_on_ray(config: TrainConfig) -> TrainResult:
    """As `run_training`, on `num_workers` devices. Raises WorkersFailedError where too many workers die."""
    config = dataclasses.replace(config, run=tuple(map(absolute, config.run)), output=config.output.resolve())
    config.output.mkdir(parents=True, exist_ok=True)
    stop = config.output / STOP
    stop.unlink(missing_ok=True)
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # paths of checkpoints are the user's
    start_ray(config.address, num_cpus=config.num_workers)
    progress = Follower(config)
    try:
        use_gpu = _uses_gpu(config)
        # In a thread of its own: Ray Train answers Ctrl-C by tearing the workers down, and ours are to save their state first.
        ended: Future[dict[str, Any]] = Future()
        Thread(target=_fit, args=(config, use_gpu, ended), daemon=True).start()
        with stop_requested(STOPPING) as asked:  # not before Ray has started: it sets a handler of its own for SIGTERM
            while not wait([ended], timeout=0.2).done:
                progress.tick()
                if asked():
                    stop.touch()
        return _result(config, ended.result())
    finally:
        progress.close()
        ray.shutdown()
        stop.unlink(missing_ok=True)
        shutil.rmtree(config.output / _RAY, ignore_errors=True)


def _fit(config: TrainConfig, use_gpu: bool, ended: Future[dict[str, Any]]) -> None:
    """Run Ray Train to its end; what comes of it goes to `ended`."""
    try:
        trainer = TorchTrainer(
            _train_in_worker,
            train_loop_config={"config": config},
            scaling_config=ray.train.ScalingConfig(num_workers=config.num_workers, use_gpu=use_gpu),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            run_config=ray.train.RunConfig(
                name=_RAY,
                storage_path=str(config.output),
                failure_config=ray.train.FailureConfig(max_failures=config.max_restarts),
            ),
        )
        ended.set_result(trainer.fit().return_value or {})
    except ray.train.TrainingFailedError as error:
        ended.set_exception(WorkersFailedError(f"the workers failed {config.max_restarts + 1} times; the last time: {error}"))
    except BaseException as error:  # raised again by who waits for `ended`
        ended.set_exception(error)


def _uses_gpu(config: TrainConfig) -> bool:
    """Whether the workers get a GPU each. Raises RefusedError where the cluster has no room: Ray would wait without a word."""
    found = ray.cluster_resources()
    use_gpu = config.device.startswith("cuda") or (config.device == "auto" and found.get("GPU", 0) > 0)
    kind = "GPU" if use_gpu else "CPU"
    if (room := int(found.get(kind, 0))) < config.num_workers:
        raise RefusedError(f"num_workers: found {config.num_workers}, but Ray sees {room} {kind}s; ask for {room} at most")
    return use_gpu


def _train_in_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    """One rank. What all ranks refuse alike is returned, not raised: starting the workers again would not change it."""
    config: TrainConfig = arguments["config"]
    context = ray.train.get_context()
    process = Process(device=str(get_device()), rank=context.get_world_rank(), world_size=context.get_world_size())
    try:
        _, finished = on_all_ranks(lambda: (None, is_finished(config)))
        if any(finished):  # one of us died when all was done, and not every node may see that yet
            return {"resumed_from": config.steps, "images": None}
        result = run_training(config, process, lambda: process.rank == 0 and Path(config.output, STOP).exists())
        return {"resumed_from": result.resumed_from, "images": result.images}
    except TrainingInterruptedError as error:
        return {"interrupted_after": error.step}
    except tuple(_FAILURES.values()) as error:
        kind = next(kind for kind in _FAILURES.values() if isinstance(error, kind))
        return {"failure": kind.__name__, "message": str(error)}


def _result(config: TrainConfig, report: dict[str, Any]) -> TrainResult:
    if "failure" in report:
        raise _FAILURES[report["failure"]](report["message"])
    if "interrupted_after" in report:
        raise TrainingInterruptedError(report["interrupted_after"])
    return TrainResult(
        checkpoint=config.output, steps=config.steps, resumed_from=report["resumed_from"], images=report["images"]
    )
