"""Who is at work in a run in a bucket, which has no locks: each leaves an object and writes it anew while it works.

How old such a sign of life is, is told by the store's clock alone. Whoever died is out of the way after five minutes. It only
tells people of each other; that nothing is torn or lost rests on records that are created once.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from manifests.bucket_store import delete, head, listed, put
from manifests.location import Url
from manifests.lock import RunInUseError

FOLDER = ".holders"
_BEAT_S = 45
_DEAD_AFTER = timedelta(minutes=5)
_ALONE, _SHARED = "alone", "shared"


@contextmanager
def hold(run: Url, *, exclusive: bool, other: str | None = None) -> Iterator[Url]:
    """Holds the run while the block runs: beside others that share it, or alone. Never waits. Gives the sign of life.

    `other`: what people call who may have it instead. Raises RunInUseError, OSError.
    """
    mine = run / FOLDER / f"{secrets.token_hex(8)}.{_ALONE if exclusive else _SHARED}"
    who = json.dumps({"host": os.uname().nodename, "pid": os.getpid()}).encode()
    put(mine, who)
    try:
        refuse_others(run, mine, exclusive=exclusive, other=other)
        stop = threading.Event()
        beating = threading.Thread(target=_beat, args=(mine, who, stop), daemon=True)
        beating.start()
        try:
            yield mine
        finally:
            stop.set()
            beating.join()
    finally:
        with suppress(OSError):
            _delete(mine)


def refuse_others(run: Url, mine: Url, *, exclusive: bool, other: str | None = None) -> None:
    """Raises RunInUseError where there is another's sign of life that does not go with ours, `mine`. Who is to be alone removes
    those of the dead."""
    items = _listed(run)
    own = next((item for item in items if run.bucket / item["path"] == mine), None)
    now = (own or head(mine))["last_modified"]
    for item in items:
        url, age = run.bucket / item["path"], now - item["last_modified"]
        if url == mine:
            continue
        if age > _DEAD_AFTER:
            if exclusive:
                with suppress(OSError):
                    _delete(url)
        elif exclusive or url.name.endswith(_ALONE):
            other = other or ("a labelling, `repair` or `clean`" if exclusive else "`python -m manifests repair` or `clean`")
            age_s, dead_s = max(age.total_seconds(), 0), _DEAD_AFTER.total_seconds()
            raise RunInUseError(
                f"{run}: in use by {other}; found its sign of life {url.name}, {age_s:.0f} s old: try again when that has "
                f"ended, or, if it was killed, {dead_s:.0f} s after it"
            )


def _beat(mine: Url, who: bytes, stop: threading.Event) -> None:
    while not stop.wait(_BEAT_S):
        with suppress(OSError):  # the next one may come through
            put(mine, who)


def _listed(run: Url) -> list[Any]:
    return list(listed(run / FOLDER))


def _delete(url: Url) -> None:
    with suppress(FileNotFoundError):
        delete(url, url.key)
