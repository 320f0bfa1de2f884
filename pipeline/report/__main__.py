"""`python -m pipeline.report`. The command line is read first: torch and the rest take seconds to import."""

from __future__ import annotations

from pipeline.report.config import read_command

if __name__ == "__main__":
    config = read_command()
    from pipeline.report.command import run

    raise SystemExit(run(config))
