"""`python -m pipeline.predict`. The command line is read first: torch and the rest take seconds to import."""

from __future__ import annotations

from pipeline.predict.config import read_command

if __name__ == "__main__":
    config = read_command()
    from pipeline.predict.command import run

    raise SystemExit(run(config))
