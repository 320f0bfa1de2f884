"""On PYTHONPATH, this makes Python hit the faults of the environment in any process, Ray's workers too."""

import os

if "LABEL_FAULTS" in os.environ:
    os.environ.setdefault("LABEL_DRIVER", str(os.getpid()))  # the first such process; the others are its children

    from tests.faults.steps import install_from_environment

    install_from_environment(os.environ["LABEL_FAULTS"])
