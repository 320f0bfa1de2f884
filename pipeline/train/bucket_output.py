"""An output in a bucket: a training works in a folder of this machine, and what counts goes up in whole objects.

They have the names that files have in a folder. First the curves, then the state, which is there whole or not at all, and then
the older ones go: so that wherever a training is killed, the newest state has its curves, which are cut to its step. Of the
finished student the weights come last.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from manifests import bucket_hold
from manifests.bucket_store import get_file, put_file
from manifests.errors import DistillError
from manifests.location import Url
from manifests.place import place_of
from pipeline.train.config import TrainConfig
from pipeline.train.log import METRICS, TENSORBOARD
from pipeline.train.state import LOCK, STATES
from stages.distillation.student import TRAINING, WEIGHTS

_OTHER = "another training"
_OF_THIS_MACHINE = (STATES, TENSORBOARD, METRICS, LOCK, WEIGHTS)


@dataclass(frozen=True)
class BucketOutput:
    """What is at `url`, worked on in `folder`; `sign` is the holder's sign of life. All raise OSError, as `in_words` does."""

    url: Url
    folder: Path
    sign: Url | None

    def fetch_records(self) -> None:
        """What says of which training the output is, and how far its curves are. Of weights there is only the name."""
        place = place_of(self.url)
        there = {entry.name for entry in place.entries("")}
        for name in sorted(there & {LOCK, METRICS, TRAINING}):
            get_file(self.url / name, self.folder / name)
        if WEIGHTS in there:
            (self.folder / WEIGHTS).touch()

    def fetch_state(self) -> None:
        """The newest state, and the one before it where that is damaged."""
        (self.folder / STATES).mkdir(exist_ok=True)
        for name in reversed(self._states()):
            path = self.folder / STATES / name
            get_file(self.url / STATES / name, path)
            try:
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is None:
                        return
            except (OSError, zipfile.BadZipFile):
                continue

    def put_lock(self) -> None:
        """Which labels the training reads, before its first step."""
        put_file(self.url / LOCK, self.folder / LOCK)

    def put_state(self) -> None:
        """The state that was saved last, with all that belongs to it. Raises RunInUseError where another training has the
        output by now."""
        if self.sign is not None:
            bucket_hold.refuse_others(self.url, self.sign, exclusive=True, other=_OTHER)
        self._put_curves()
        here = sorted(path.name for path in (self.folder / STATES).glob("step-*.pt"))
        newest = here[-1]
        put_file(self.url / STATES / newest, self.folder / STATES / newest)
        for name in set(self._states()) - set(here):
            place_of(self.url).remove(f"{STATES}/{name}")

    def put_student(self) -> None:
        """The finished student; then nothing is left to resume."""
        self._put_curves()
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and path.name not in _OF_THIS_MACHINE and not path.name.startswith("."):
                put_file(self.url / path.name, path)
        put_file(self.url / WEIGHTS, self.folder / WEIGHTS)
        self.remove_states()

    def remove_states(self) -> None:
        """After the weights are there."""
        if self._states():
            place_of(self.url).remove(STATES)

    def _put_curves(self) -> None:
        put_file(self.url / METRICS, self.folder / METRICS)
        for path in sorted((self.folder / TENSORBOARD).iterdir()):
            put_file(self.url / TENSORBOARD / path.name, path)

    def _states(self) -> list[str]:
        names = (entry.name for entry in place_of(self.url).entries(STATES) if entry.kind == "file")
        return sorted(name for name in names if name.startswith("step-") and name.endswith(".pt"))


@contextmanager
def at_hand(config: TrainConfig, *, to_train: bool) -> Iterator[tuple[TrainConfig, BucketOutput | None]]:
    """The configuration with an output that is a folder of this machine, and what that is the image of, if of any.

    to_train: holds it, and fetches what is resumed from; else its records alone. The folder is a temporary one (TMPDIR). What
    goes wrong is said of the URL. Raises RunInUseError where another training has it.
    """
    url = config.output
    if not isinstance(url, Url):
        yield config, None
        return
    with ExitStack() as held:
        above = held.enter_context(tempfile.TemporaryDirectory(prefix="training-", ignore_cleanup_errors=True))
        folder = Path(above) / (url.name or "student")
        folder.mkdir()
        held.enter_context(_said_of(url, folder))
        sign = held.enter_context(bucket_hold.hold(url, exclusive=True, other=_OTHER)) if to_train else None
        output = BucketOutput(url, folder, sign)
        output.fetch_records()
        if to_train:
            output.fetch_state()
            if any((folder / STATES).iterdir()):
                print(f"{url}: fetched what to resume from", file=sys.stderr)
        yield replace(config, output=folder), output


@contextmanager
def _said_of(url: Url, folder: Path) -> Iterator[None]:
    try:
        yield
    except (DistillError, OSError) as error:
        error.args = tuple(part.replace(str(folder), str(url)) if isinstance(part, str) else part for part in error.args)
        raise
