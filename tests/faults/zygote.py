"""A process that has imported all that labelling needs and forks for each run: a real process in no time.

Reads lines of JSON from stdin. `{"call": "module:function", "arguments", "faults", "output", "environment"}` calls
function(*arguments) in a forked process, whose id is answered; `{"wait": id}` waits for it and answers its exit status, or
minus its signal.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any

from tests.faults.steps import install_from_environment

_IMPORTED_LATE = (
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "pandas",  # by pyarrow, when it is given lists
    "pipeline.label.command",
    "stages.models.genpercept",
    "stages.models.transformers_models",
    "transformers.models.depth_anything.modeling_depth_anything",
    "transformers.models.dinov2.modeling_dinov2",
    "typeguard",  # by tyro, when it parses
    "tyro._backends._tyro_backend",
)


def _child(request: dict[str, Any]) -> int:
    """Never returns; what the function returns is the process's exit status."""
    status = 1
    try:
        os.setsid()
        output = os.open(request["output"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(request["environment"])
        install_from_environment(request["faults"])
        module, _, function = request["call"].partition(":")
        status = getattr(importlib.import_module(module), function)(*request["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    for name in _IMPORTED_LATE:
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        print(_wait(asked["wait"]) if "wait" in asked else os.fork() or _child(asked), flush=True)
