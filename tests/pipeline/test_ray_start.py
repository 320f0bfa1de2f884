"""Ray as the commands start it, in a process of its own: its environment is read once, when it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

_WORKER = """
import json, os, ray
from pipeline.ray_start import start_ray
os.nice(2)
start_ray(None, num_cpus=1)
niceness = lambda: os.getpriority(os.PRIO_PROCESS, 0)
print(json.dumps([niceness(), ray.get(ray.remote(niceness).remote())]))
"""


@pytest.mark.campaign
@pytest.mark.parametrize(("setting", "more"), [(None, 0), ("4", 4)])
def test_workers_are_as_nice_as_the_command_unless_the_user_says_otherwise(setting: str | None, more: int):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_worker_niceness"}
    if setting:
        environment["RAY_worker_niceness"] = setting
    ended = subprocess.run([sys.executable, "-c", _WORKER], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    command, worker = json.loads(ended.stdout.splitlines()[-1])
    assert worker == min(command + more, 19)
