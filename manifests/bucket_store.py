"""Objects of a bucket, through obstore: its stores, opened from this process's environment, and its errors as the system's.

Credentials come from where the stores' own tools look for them, never from a URL or a record, and are in no message.
"""

from __future__ import annotations

import errno
import io
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from manifests.errors import DistillError, RefusedError
from manifests.location import Url

if TYPE_CHECKING:
    from obstore.store import ObjectStore

TIMEOUT_VARIABLE = "BUCKET_TIMEOUT_S"
"""The environment variable for how long one request may take in all, in seconds: longer than the upload of one file."""
_TIMEOUT_S = 120.0
_RETRIES = 6
_PAUSES_S = (0.2, 1.0)
_TROUBLES = (errno.EIO, errno.ETIMEDOUT)  # of a store or a network, which may be over the next time
_CREATE_TRIES = 5
_FIRST_READ_BYTES, _LARGEST_READ_BYTES = 1 << 18, 1 << 23
LARGEST_PUT_BYTES = 1 << 28  # in one request, which is the object or nothing of it
ResultT = TypeVar("ResultT")
_SECRETS = re.compile(r"\?\S*|//[^/@\s]+@")  # a signature in a query, a password before a host


class ObjectTooLargeError(DistillError):
    """An object of more bytes than were to be read."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.size_bytes = size_bytes


class ObjectChangedError(DistillError, OSError):
    """An object is not the one that it was when it was opened, or catalogued."""


def open_store(bucket: Url) -> ObjectStore:
    """The store of a bucket. Raises RefusedError where the package is missing, or its settings are wrong."""
    return _opened(bucket, os.environ.get(TIMEOUT_VARIABLE, ""))


@lru_cache(maxsize=64)
def _opened(bucket: Url, timeout: str) -> ObjectStore:
    timeout_s = _seconds(timeout) if timeout else _TIMEOUT_S
    obstore = package()
    if bucket.scheme == "memory":
        return obstore.store.MemoryStore()
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=min(timeout_s, 10)),
        "timeout": timedelta(seconds=timeout_s),
        "allow_http": _endpoint().startswith("http://") or bucket.scheme == "http",
    }
    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2}
    retry: dict[str, Any] = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=2 * timeout_s), "backoff": backoff}
    try:
        return obstore.store.from_url(str(bucket), client_options=options, retry_config=retry)
    except (obstore.exceptions.BaseError, ValueError, TypeError) as error:
        raise RefusedError(f"{bucket}: the store cannot be opened: {_words(error)}") from error


def package() -> Any:
    """The package obstore. Raises RefusedError where it is not installed."""
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise RefusedError(
            "buckets need the package obstore: install this package's extra `bucket` (pip install obstore)"
        ) from error
    return obstore


def _endpoint() -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL")
    return next((os.environ[name] for name in names if os.environ.get(name)), "").lower()


def _seconds(text: str) -> float:
    try:
        if (seconds := float(text)) > 0:
            return seconds
    except ValueError:
        pass
    raise RefusedError(f"{TIMEOUT_VARIABLE} is {text!r}, expected a number of seconds above 0")


@contextmanager
def in_words(shown: str) -> Iterator[None]:
    """What the store says as the system would: FileNotFoundError, PermissionError, TimeoutError, ObjectChangedError, or another
    OSError, by the object's URL and without secrets."""
    try:
        yield
    except DistillError:
        raise
    except FileNotFoundError as error:
        what = "there is no such bucket" if "NoSuchBucket" in str(error) else os.strerror(errno.ENOENT)
        raise FileNotFoundError(errno.ENOENT, what, shown) from None
    except package().exceptions.BaseError as error:
        raise _as_os_error(error, shown) from None
    except (ValueError, RuntimeError) as error:  # an object that has another size than it said, cut on the way
        raise OSError(errno.EIO, _words(error), shown) from None


def _as_os_error(error: Exception, shown: str) -> OSError:
    exceptions, words = package().exceptions, _words(error)
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return PermissionError(errno.EACCES, f"the store does not let us: {words}", shown)
    if isinstance(error, exceptions.PreconditionError):
        return ObjectChangedError(errno.ESTALE, "is another object than it was", shown)
    if isinstance(error, exceptions.NotSupportedError | NotImplementedError):
        return OSError(errno.EOPNOTSUPP, words, shown)
    if "NoSuchBucket" in words or "404 Not Found" in words:
        return FileNotFoundError(errno.ENOENT, "there is no such bucket", shown)
    if "timed out" in words or "TimedOut" in words or "timeout" in words:
        return TimeoutError(errno.ETIMEDOUT, words, shown)
    return OSError(errno.EIO, words, shown)


def _words(error: Exception) -> str:
    """An error's message in one line, without what stands in queries."""
    text = " ".join(_SECRETS.sub("", str(error)).split())
    return text if len(text) <= 400 else f"{text[:400]}..."


def get(url: Url, options: dict[str, Any] | None = None, *, limit_bytes: int | None = None) -> tuple[Any, bytes]:
    """What the store says of an object, and its bytes. `options`: obstore's, such as `range`, `if_match`.

    Raises ObjectTooLargeError for one of more than `limit_bytes`, of which nothing is read; otherwise as `in_words`. Tried
    again where the answer was cut, late, or the store's own trouble.
    """

    def once() -> tuple[Any, bytes]:
        with in_words(str(url)):
            try:
                found = package().get(open_store(url.bucket), url.key, options=options)
            except package().exceptions.GenericError:
                if "range" not in (options or {}) or (meta := head(url))["size"]:
                    raise
                return meta, b""  # of an empty object no range can be had
            if limit_bytes is not None and found.meta["size"] > limit_bytes:
                raise ObjectTooLargeError(found.meta["size"])
            return found.meta, bytes(found.bytes())

    return tried_again(once)


def head(url: Url) -> Any:
    """What the store says of an object: `size`, `e_tag`, `last_modified` by its own clock. Raises as `in_words`."""

    def once() -> Any:
        with in_words(str(url)):
            return package().head(open_store(url.bucket), url.key)

    return tried_again(once)


def listed(url: Url) -> Iterator[Any]:
    """What the store says of each object below a URL, in the order of their keys, with its whole key as `path`. Raises as
    `in_words`; goes on behind the last one where an answer was cut, twice at most."""
    last, pauses_s = None, list(_PAUSES_S)
    while True:
        try:
            with in_words(str(url)):
                for items in package().list(open_store(url.bucket), url.key or None, offset=last):
                    for item in items:
                        yield item
                        last = item["path"]
            return
        except OSError as error:
            if error.errno not in _TROUBLES or not pauses_s:
                raise
        time.sleep(pauses_s.pop(0) * random.uniform(0.5, 1.5))


def delete(url: Url, keys: str | list[str]) -> None:
    """Removes objects of a URL's bucket. Raises as `in_words`, FileNotFoundError where the store says that one is not there."""

    def once() -> None:
        with in_words(str(url)):
            package().delete(open_store(url.bucket), keys)

    tried_again(once)


def put(url: Url, content: bytes | memoryview) -> None:
    """Gives the object this content, whatever it was. Raises as `in_words`."""

    def once() -> None:
        with in_words(str(url)):
            in_pieces = memoryview(content).nbytes > LARGEST_PUT_BYTES
            package().put(open_store(url.bucket), url.key, content, use_multipart=in_pieces)

    tried_again(once)


def create(url: Url, content: bytes | memoryview, shown: str | None = None) -> bool:
    """Creates the object unless its name is taken; says whether it was us. Raises as `in_words`, and the object may still come.

    What the store answers is not believed where it is an error: a reply may be lost after the object was made, and "exists" or
    "conflict" be said of our own first try. The object is read back: our bytes are ours, others are another's, and nothing is
    tried again. Where all tries end without an answer, the last may still be on its way. `shown`: what people call it.
    """
    pause_s = 0.2
    for left in reversed(range(_CREATE_TRIES)):
        try:
            with in_words(shown or str(url)):
                package().put(open_store(url.bucket), url.key, content, mode="create", use_multipart=False)
            return True
        except OSError as error:
            with suppress(OSError):  # absent, or not to be told: again
                return get(url)[1] == content
            if not left or error.errno in (errno.EACCES, errno.ENOENT, errno.EOPNOTSUPP):
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 5)
    raise AssertionError


def put_file(url: Url, path: Path) -> None:
    """As `put`, with the content of a file of this machine; a large one goes up in pieces, and is there when all are."""

    def once() -> None:
        with in_words(str(url)):
            in_pieces = path.stat().st_size > _LARGEST_READ_BYTES
            package().put(open_store(url.bucket), url.key, path if in_pieces else path.read_bytes(), use_multipart=in_pieces)

    tried_again(once)


def get_file(url: Url, path: Path) -> None:
    """Writes the object's bytes to a file of this machine. Raises as `in_words`; OSError where fewer bytes came."""

    def once() -> None:
        with in_words(str(url)), path.open("wb") as file:
            found = package().get(open_store(url.bucket), url.key)
            for piece in found.stream(min_chunk_size=_LARGEST_READ_BYTES):
                file.write(piece)
            if file.tell() != found.meta["size"]:
                raise OSError(errno.EIO, f"{file.tell()} bytes came of {found.meta['size']}", str(url))

    tried_again(once)


def tried_again(call: Callable[[], ResultT]) -> ResultT:
    """What the call returns, at the third try where the store was in trouble. Raises the last OSError."""
    for pause_s in _PAUSES_S:
        try:
            return call()
        except OSError as error:
            if error.errno not in _TROUBLES:
                raise
        time.sleep(pause_s * random.uniform(0.5, 1.5))
    return call()


class ObjectReader(io.RawIOBase):
    """An object, to be read from any position: read ahead in pieces that double up to 8 MiB as long as it is read on and on, so
    that the headers of a tar of small members cost few requests, and those of large ones a request each.

    Every piece is of the object that was opened first: raises ObjectChangedError where it is another by now.
    """

    def __init__(self, url: Url, *, e_tag: str | None = None) -> None:
        """`e_tag`: of the object that is expected; None takes the one that is there. Raises FileNotFoundError, OSError."""
        self.url, self.e_tag = url, e_tag
        self._position, self._start, self._piece = 0, 0, b""
        self._next_bytes = _FIRST_READ_BYTES
        self.size_bytes = self._first_piece()

    def _first_piece(self) -> int:
        found, piece = get(self.url, {"range": (0, _FIRST_READ_BYTES)} | self._condition)
        self.e_tag, self._piece = found["e_tag"], piece
        return found["size"]

    @property
    def _condition(self) -> dict[str, Any]:
        return {} if self.e_tag is None else {"if_match": self.e_tag}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size_bytes}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(self.url))
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        into = memoryview(buffer).cast("B")
        if not len(into) or self._position >= self.size_bytes:
            return 0
        if not self._start <= self._position < self._start + len(self._piece):
            self._fetch(len(into))
        begin = self._position - self._start
        piece = self._piece[begin : begin + len(into)]
        into[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _fetch(self, wanted: int) -> None:
        reads_on = 0 <= self._position - (self._start + len(self._piece)) < self._next_bytes
        self._next_bytes = min(2 * self._next_bytes, _LARGEST_READ_BYTES) if reads_on else _FIRST_READ_BYTES
        end = min(self._position + max(wanted, self._next_bytes), self.size_bytes)
        self._piece, self._start = self.span(self._position, end), self._position

    def span(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`, in one request. Raises OSError where fewer come."""
        _, piece = get(self.url, {"range": (start, end)} | self._condition)
        if len(piece) != end - start:
            raise OSError(errno.EIO, f"{len(piece)} bytes came, {end - start} were asked for", str(self.url))
        return piece


def open_object(url: Url, *, e_tag: str | None = None) -> io.BufferedReader:
    """An object, to be read from any position; `raw` is its `ObjectReader`. Raises FileNotFoundError, OSError."""
    return io.BufferedReader(ObjectReader(url, e_tag=e_tag), buffer_size=1 << 13)
