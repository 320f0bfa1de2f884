"""One way to start Ray: on this machine for as long as the command runs, or joined by address; workers as nice as the command.

Ray adds 15 to its workers' niceness by itself, with which they starve beside any other work. Here they get 0 more than what
starts them: the command, or on a cluster each machine's own `ray start`, whose environment decides there.
"""

from __future__ import annotations

import logging
import os

import ray


def start_ray(address: str | None, *, num_cpus: int) -> None:
    """Ray is up when this returns; `ray.shutdown()` ends it.

    address: of a cluster. num_cpus: what this machine is said to have, at least, when there is no address; a cluster has its
    own count. What the environment says of RAY_worker_niceness and RAY_USAGE_STATS_ENABLED wins.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # read when Ray starts, and added to the niceness of this process
    ray.init(
        address or "local",  # without "local", Ray would join whatever cluster it finds on this machine
        num_cpus=None if address else max(num_cpus, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
