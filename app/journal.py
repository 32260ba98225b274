"""What became of each picture of a command, written down as it happens.

A line of JSON for each picture is appended as soon as its poses are known, so a command that is
killed at any moment goes on where it was. The first line says what was asked for: answers to
different questions are kept apart. Result files are made of it at the end: see `app.formats`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

#: The journal's name in the folder of results.
FILE_NAME = "journal.jsonl"

#: A file's size in bytes and when it was last written, in nanoseconds: another picture has others.
Stamp = tuple[int, int]


class JournalError(ValueError):
    """The folder cannot take these results: the message says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one picture: its people, or why they are not known."""

    name: str
    """The picture's, see `Pictures.name`."""
    stamp: Stamp | None = None
    """The file's when it was read; None where it could not be looked at."""
    width: int = 0
    height: int = 0
    """Of the upright picture, in pixels."""
    people: list[dict[str, Any]] = field(default_factory=list)
    """COCO's `bbox`, `score` and `keypoints` of each, best first."""
    error: str | None = None
    """Why there is no answer, where there is none."""


class Journal:
    """The journal of a folder of results: a context manager.

    Args:
        folder: is made if it is not there.
        asked: what was asked for, and of what: names and values for JSON. All that answers depend
            on belongs here.

    Raises:
        JournalError: the folder holds answers to another question, or another process writes there.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        #: By name where its line begins, and the picture's stamp.
        self._known: dict[str, tuple[int, Stamp | None]] = {}
        self._file = (folder / FILE_NAME).open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(folder, json.loads(json.dumps(asked)))
        except BlockingIOError as error:
            self._file.close()
            raise JournalError(f"another process writes into {folder}") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def knows(self, name: str, stamp: Stamp | None) -> bool:
        """Whether a picture's people are known, and the picture is still the same one."""
        return name in self._known and self._known[name][1] == stamp

    def add(self, entry: Entry) -> None:
        """Write down what became of a picture; it is in the file when this returns."""
        offset = self._file.seek(0, os.SEEK_END)
        told = {name: getattr(entry, name) for name in Entry.__slots__}
        self._write(told)
        self._note(entry, offset)

    def entries(self) -> Iterator[Entry]:
        """The pictures whose people are known, in the order of their names."""
        for name in sorted(self._known):
            self._file.seek(self._known[name][0])
            yield parse(self._file.readline())

    def _read(self, folder: Path, asked: dict[str, Any]) -> None:
        self._file.seek(0)
        line = self._file.readline()
        if b"{".startswith(line[:1]) and not line.endswith(b"\n"):
            # A new one, or one that was killed before its first line was written.
            self._begin(asked)
            return
        try:
            before = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise JournalError(f"{folder / FILE_NAME} is no journal of posemux") from error
        offset = self._file.tell()
        for line in self._file:
            # Whatever ended a process, or the machine, may have cut a line short.
            with suppress(ValueError, TypeError):
                self._note(parse(line), offset)
            offset += len(line)
        if not self._known:
            self._begin(asked)
            return
        for key in (*asked, *(before.keys() - asked.keys())):
            if asked.get(key) != before.get(key):
                raise JournalError(
                    f"{folder} has the results of {key} {before.get(key)}, not of "
                    f"{asked.get(key)}: accepted are another folder, or what was asked for there"
                )
        if not line.endswith(b"\n"):
            self._file.write(b"\n")

    def _begin(self, asked: dict[str, Any]) -> None:
        self._file.truncate(0)
        self._write(asked)

    def _note(self, entry: Entry, offset: int) -> None:
        if entry.error is None:
            self._known[entry.name] = offset, entry.stamp
        else:
            # It may be another picture by now.
            self._known.pop(entry.name, None)

    def _write(self, told: dict[str, Any]) -> None:
        self._file.write(json.dumps(told, separators=(",", ":")).encode() + b"\n")
        self._file.flush()


def stamp(path: str) -> Stamp:
    """A file's.

    Raises:
        OSError: it cannot be looked at.
    """
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def parse(line: str | bytes) -> Entry:
    """An entry of its line of JSON."""
    told = json.loads(line)
    told["stamp"] = told["stamp"] and tuple(told["stamp"])
    return Entry(**told)
