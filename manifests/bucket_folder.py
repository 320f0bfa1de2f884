"""A run in a bucket: `manifests.place` on an object store. There are no links, and folders only where files are in them."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from io import BufferedReader
from typing import Any

from manifests import bucket_hold
from manifests.bucket_new_folder import BucketNewFolder
from manifests.bucket_store import (
    ObjectTooLargeError,
    create,
    delete,
    get,
    head,
    in_words,
    listed,
    open_object,
    open_store,
    package,
    put,
    tried_again,
)
from manifests.errors import RefusedError
from manifests.location import Url, refuse_other_schemes
from manifests.place import Entry, Place, TooLargeError, parts_of, split

ABANDONED_AFTER = timedelta(days=1)
"""Of what no record names: an attempt that still uploads to it has given up long before."""
_PROBES = (".create-probe-", ".clock-")


class BucketFolder(Place):
    """Opens its store when it is first used, with the credentials of the process that uses it."""

    late_creates = True

    def __init__(self, root: Url) -> None:
        """Raises RefusedError for a URL of no bucket that can hold a run."""
        refuse_other_schemes(root)
        self.root = root

    def shown(self, name: str) -> str:
        return str(self.root / name)

    def open(self, name: str) -> BufferedReader:
        return open_object(self._url(name))

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        try:
            return get(self._url(name), limit_bytes=limit_bytes)[1]
        except ObjectTooLargeError as error:
            message = f"found {error.size_bytes} bytes, expected at most {limit_bytes}"
            raise TooLargeError(errno.EFBIG, message, self.shown(name)) from None

    def exists(self, name: str) -> bool:
        try:
            head(self._url(name))
        except FileNotFoundError:
            return False
        return True

    def entries(self, folder: str) -> list[Entry]:
        listed = self._listed(folder)
        found = {name: Entry(name, "folder") for name in map(_last, listed["common_prefixes"])}
        found |= {name: Entry(name, "file") for name in (_last(item["path"]) for item in listed["objects"])}
        return [found[name] for name in sorted(found)]

    def states(self, folder: str) -> dict[str, str | None]:
        """Size and ETag, which no two contents share; names of folders have none."""
        listed = self._listed(folder)
        found: dict[str, str | None] = {_last(path): None for path in listed["common_prefixes"]}
        return found | {_last(item["path"]): f"{item['size']}-{item['e_tag']}" for item in listed["objects"] if item["e_tag"]}

    def tree(self, folder: str) -> list[Entry]:
        inner, prefix = [Entry(name, "file", item["size"]) for name, item in self._below(folder)], set[str]()
        for entry in inner:
            steps = entry.name.split("/")
            prefix |= {"/".join(steps[:i]) for i in range(1, len(steps))}
        return sorted([*inner, *(Entry(name, "folder") for name in prefix)], key=lambda entry: entry.name)

    def create(self, name: str, content: bytes) -> bool:
        """See `bucket_store.create`."""
        return create(self._url(name), content, self.shown(name))

    def replace(self, name: str, content: bytes) -> None:
        put(self._url(name), content)

    def new_folder(self, name: str) -> BucketNewFolder:
        split(name)
        return BucketNewFolder(self.root, name)

    def remove(self, name: str) -> None:
        url = self._url(name)
        keys = [url.key, *(f"{url.key}/{inner}" for inner, _ in self._below(name))]
        try:
            delete(url, keys)
        except FileNotFoundError:  # some stores say so of one, and leave the others
            for key in keys:
                with suppress(FileNotFoundError):
                    delete(url, key)

    def leftovers(self, folder: str) -> list[str]:
        """Probes, and signs of life of the dead."""
        if folder:
            return []
        holders = [f"{bucket_hold.FOLDER}/{entry.name}" for entry in self.entries(bucket_hold.FOLDER)]
        return [entry.name for entry in self.entries("") if entry.name.startswith(_PROBES)] + holders

    def is_abandoned(self, name: str) -> bool:
        """By the store's own clock: nothing of it has been written for a day."""
        written: list[datetime] = [item["last_modified"] for _, item in self._below(name)]
        with suppress(FileNotFoundError):
            written.append(head(self._url(name))["last_modified"])
        return not written or self._now() - max(written) > ABANDONED_AFTER

    def refuse_unsafe_creates(self) -> None:
        """Lets two creates of one object race: raises RefusedError where the store lets both win, or neither."""
        url = self._url(f"{_PROBES[0]}{secrets.token_hex(8)}")

        def wins(content: bytes) -> bool:
            try:
                with in_words(str(url)):
                    package().put(open_store(url.bucket), url.key, content, mode="create", use_multipart=False)
            except PermissionError:
                raise
            except OSError:
                return False
            return True

        try:
            with ThreadPoolExecutor(2) as pool:
                won = list(pool.map(wins, (b"first", b"second")))
            if won == [True, True] or (any(won) and wins(b"third")):
                raise RefusedError(
                    f"{self.root}: this store lets several writers create the same object, so that two machines could each "
                    "believe that they had made a part; expected one that honours If-None-Match on PUT. Use another store, "
                    "or a newer version of it"
                )
        finally:
            with suppress(OSError):
                self.remove(url.name)

    @contextmanager
    def hold(self, *, exclusive: bool) -> Iterator[None]:
        """Leaves signs of life in `.holders/`, which others look at; see `manifests.bucket_hold`."""
        with bucket_hold.hold(self.root, exclusive=exclusive):
            yield

    def _url(self, name: str) -> Url:
        split(name)
        return self.root / name

    def _now(self) -> datetime:
        """What the store's clock says."""
        url = self._url(f"{_PROBES[1]}{secrets.token_hex(8)}")
        put(url, b"")
        try:
            return head(url)["last_modified"]
        finally:
            self.remove(url.name)

    def _listed(self, folder: str) -> Any:
        parts_of(folder)
        url = self.root / folder

        def once() -> Any:
            with in_words(str(url)):
                return package().list_with_delimiter(open_store(url.bucket), url.key or None)

        return tried_again(once)

    def _below(self, folder: str) -> Iterator[tuple[str, Any]]:
        """All objects below a folder by their names in it."""
        parts_of(folder)
        url = self.root / folder
        return ((item["path"][len(url.key) :].lstrip("/"), item) for item in listed(url))


def _last(path: str) -> str:
    return path.rpartition("/")[2]
