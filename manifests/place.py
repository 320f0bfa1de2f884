"""The door to a run's files: everything that creates, reads, lists or removes them goes through here.

A run may come from a stranger, so nothing in it is taken on trust. Promises: only regular files are opened, and opening never
waits, whatever stands in a file's place; a symbolic link below the run is never followed, not as a file and not as a folder on
the way to one, neither in reading nor in writing; nothing outside the run is touched; every error is raised, so that a list is
whole or there is none. The run's own folder may be reached through links.

Names are relative to the run, with `/`. There is no renaming and no appending here, a folder that is not there is an empty one,
and nobody makes one: what an object store could not give, no caller can come to need.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from io import BufferedReader
from typing import Literal, NamedTuple

from manifests.errors import DistillError
from manifests.location import Location, Url
from manifests.schema import FileRecord

MAX_DEPTH = 32
"""Folders in each other, the run's own aside. Arrays need 7."""
Kind = Literal["file", "folder", "link", "other"]


class PlaceError(DistillError, OSError):
    """What stands at a name is nothing that belongs in a run."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class LinkError(PlaceError):
    """A symbolic link, there or on the way there."""


class WrongKindError(PlaceError):
    """A folder, pipe, socket or device in a file's place, or a file in a folder's."""


class TooLargeError(PlaceError):
    """A file of more bytes than the caller takes, or folders nested too deep."""


class UnexpectedFilesError(DistillError, OSError):
    """A folder does not hold the files that were written into it."""


class Entry(NamedTuple):
    """Something in a run. `size_bytes` is told of the files of a tree."""

    name: str
    kind: Kind
    size_bytes: int | None = None


def place_of(run_dir: Location) -> Place:
    """Where the run's files are. Nothing of it need be there yet. Raises RefusedError for a URL of no bucket."""
    if isinstance(run_dir, Url):
        from manifests.bucket_folder import BucketFolder  # they import this module

        return BucketFolder(run_dir)
    from manifests.local_folder import LocalFolder

    return LocalFolder(run_dir)


def split(name: str) -> tuple[list[str], str]:
    """The folders on the way to something in the run, and its own name."""
    *folders, last = parts_of(name) or [""]
    if not last:
        raise ValueError(f"{name!r}: expected the name of something in the run")
    return folders, last


def parts_of(name: str) -> list[str]:
    """The parts of a name, none for the run itself. Raises ValueError for one that is not below the run."""
    parts = name.split("/") if name else []
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ValueError(f"{name!r}: expected a path below the run, without empty parts, '.' and '..'")
    return parts


class Place(ABC):
    """A run's files. Can be sent to other processes.

    All methods raise ValueError for a name that is not below the run, and OSError: FileNotFoundError where a file is not there,
    LinkError, WrongKindError and TooLargeError as described there, and whatever the system says.
    """

    late_creates = False
    """Whether what `create` has begun, and told nobody of, can come to be after it has raised."""

    @abstractmethod
    def shown(self, name: str) -> str:
        """What people call it: its path."""

    @abstractmethod
    def open(self, name: str) -> BufferedReader:
        """The file, to be read from any position."""

    @abstractmethod
    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """The whole file. Raises TooLargeError for more than `limit_bytes`, of which nothing is read."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether anything has this name, be it a file or not; where folders have no names of their own, only a file."""

    @abstractmethod
    def entries(self, folder: str) -> list[Entry]:
        """What lies in a folder, by name; hidden names too. Empty where there is no such folder."""

    @abstractmethod
    def states(self, folder: str) -> dict[str, str | None]:
        """By name, in no order, what lies in a folder: a file's state, else None. Empty where there is no such folder.

        Two states are alike only for the same file with the same content: they are the place's own words, made without reading
        it. None, too, for a file that has changed just now and may change again unnoticed.
        """

    @abstractmethod
    def tree(self, folder: str) -> list[Entry]:
        """All that lies in a folder and the folders in it, with names relative to it; links and pipes are named like files.

        Empty where there is no such folder.
        """

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Creates the file unless its name is taken; says whether it was us. Another's file is left untouched.

        Of any number of processes, on any number of machines that share the place, exactly one gets True; in a bucket
        perhaps several, if they bring the same bytes. When True is returned the file and its name are durable. Whoever meets an
        exception must look whether the file is there: it may have come after the file had its name, and it may come later
        still where the place has `late_creates`.
        """

    @abstractmethod
    def replace(self, name: str, content: bytes) -> None:
        """Gives the file this content, whatever stood there; a reader sees the old or the new file, never a mixture."""

    @abstractmethod
    def new_folder(self, name: str) -> NewFolder:
        """A folder that is yet to be filled. Raises FileExistsError where there is one of this name. Where folders have no
        names of their own, its `publish` raises that, or `write`, where another has made a file of it."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, a link (never what it points to), or a folder with all that is in it; what is gone is no error.

        When it returns, the name is gone durably.
        """

    @abstractmethod
    def leftovers(self, folder: str) -> list[str]:
        """What interrupted calls of `create` and `replace` have left in a folder, by name: nobody reads it."""

    def is_abandoned(self, name: str) -> bool:
        """Whether nobody can still be writing what no record names, as far as the place itself can tell."""
        return True

    def refuse_unsafe_creates(self) -> None:  # noqa: B027  # a folder's `create` refuses by itself
        """Raises RefusedError where two writers could both be told that they had created one file."""

    @abstractmethod
    def hold(self, *, exclusive: bool) -> AbstractContextManager[None]:
        """Holds the run while a block runs: beside others that share it, or alone. Never waits.

        It only tells people of each other; that nothing is torn or lost never rests on it. Raises RunInUseError.
        """


class NewFolder(ABC):
    """Files that come to be together: none of them counts until `publish` returns and a record names them."""

    name: str
    """Of the folder, relative to the run."""

    @property
    @abstractmethod
    def sizes(self) -> Mapping[str, int]:
        """The size in bytes of each file that was written, by its path in the folder: from the writing, not from looking."""

    @abstractmethod
    def write(self, name: str, content: bytes | memoryview) -> None:
        """Writes a whole file; over the former one, where it was written before."""

    @abstractmethod
    def open(self, name: str) -> BufferedReader:
        """A file that was written, to be read from any position."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Takes back a file that was written."""

    @abstractmethod
    def publish(self) -> tuple[FileRecord, ...]:
        """Returns when the files and their names are durable; says what is in them, sorted by path.

        The records' paths begin with the folder's own name. Raises UnexpectedFilesError where the folder holds other files than
        were written, or these with other sizes, and where there are none.
        """
