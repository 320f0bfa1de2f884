"""What `python -m pipeline.demo` can be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import at_least, parse_command
from pipeline.help import HelpPage


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Label, train and evaluate on rendered scenes, and write a report."""

    output: Path = Path("demo")
    """Folder of everything that the demo makes."""
    preset: str = "demo"
    """Starting values."""
    config: Path | None = None
    """TOML file with values for any of these."""
    scenes: int = 192
    """Photographs to render and label."""
    steps: int = 300
    """Steps of the student's training."""
    held_out: int = 100
    """Held-out scenes to score on."""
    examples: int = 6
    """Scenes in the report."""
    seed: int = 0
    """Seed of the views and of the training; the scenes stay the same."""
    workers: int | None = None
    """Ray workers; one per GPU, else one per CPU core. 0 labels in this process."""

    def problems(self) -> list[str]:
        """Every value that cannot be accepted, in words."""
        found = at_least(self, {"scenes": 8, "steps": 1, "held_out": 1, "examples": 1, "seed": 0})
        if self.examples > self.held_out:
            found.append(f"--examples is {self.examples}, more than the {self.held_out} held-out scenes")
        return found


HELP = HelpPage(
    description=(
        "The whole pipeline in a few minutes on a CPU, without a network or a download: renders scenes, labels them "
        "with the demo's teachers, trains a student from the labels, scores all networks on held-out scenes, and "
        "writes a report to look at. A second run only does what is missing."
    ),
)


def read_command(argv: Sequence[str] | None = None) -> DemoConfig:
    """The configuration of a command line; exits with status 2 where there is none. Imports no torch to answer `--help`."""
    return parse_command(DemoConfig, {"demo": {}}, program="python -m pipeline.demo", description=HELP, argv=argv)
