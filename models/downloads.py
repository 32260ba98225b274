"""Weights files fetched from where their authors publish them, whole or not at all.

A file grows as `NAME.part` beside its place and gets its name once its digest is right: under that
name there is never a half or a wrong file. What came before a cut, even in an earlier call, is not
fetched again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

#: Bytes so far, and of the whole file where the server tells.
Progress = Callable[[int, int | None], None]

_SCHEMES = ("http", "https", "file")
_CHUNK = 2**18
#: How often in a row it is tried without getting further.
_ATTEMPTS = 5
#: Answers that another attempt may better: timeout, too many requests, and the server's failures.
_PASSING = (408, 429, 500, 502, 503, 504)
_RANGE_NOT_SATISFIABLE = 416
_PARTIAL_CONTENT = 206


class DownloadError(ValueError):
    """A file that could not be fetched: the message says from where or to where, and why."""


class _InterruptedError(Exception):
    """This attempt failed; another one may not."""


def fetch(
    url: str,
    path: Path,
    digest: str,
    progress: Progress | None = None,
    *,
    timeout: float = 30.0,
    pause: float = 1.0,
) -> None:
    """Fetch a file, unless it is already there.

    Stalls, cut connections and server failures are tried again, and then go on where they stopped
    if the server can (RFC 9110, section 14).

    Args:
        url: an http, https or file URL.
        path: where to; missing folders are made.
        digest: the file's sha256 in hexadecimal or its first digits, such as the eight in the names
            of OpenMMLab's files; empty where none is known, and nothing is checked.
        progress: is called with every piece; after a fresh start it begins at 0 again.
        timeout: seconds without a byte after which a connection counts as stalled.
        pause: seconds before the second attempt; each further one waits twice as long.

    Raises:
        DownloadError: the file cannot be had, is not the one that the digest names, or cannot be
            written. A part that may be gone on with stays.
    """
    if urlsplit(url).scheme not in _SCHEMES:
        raise DownloadError(f"{url}: an http, https or file URL is wanted")
    part = path.with_name(f"{path.name}.part")
    try:
        if digest and path.is_file() and sha256(path).startswith(digest):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            _reserve(file, part)
            download = _Download(url, part, file, progress, timeout, pause)
            try:
                download.run()
                if download.pieced and not sha256(part).startswith(digest):
                    # The pieces may be of different files; what comes in one go is not.
                    download.restart()
                    download.run()
            finally:
                if part.is_file() and part.stat().st_size == 0:
                    part.unlink()
            found = sha256(part)
            if not found.startswith(digest):
                part.unlink()
                raise DownloadError(
                    f"{url} is not the file that was expected: its sha256 is {found}, and should "
                    f"{'be' if len(digest) == 64 else 'begin with'} {digest}"
                )
            os.fsync(file.fileno())
            part.replace(path)
    except OSError as error:
        raise DownloadError(
            f"{error.filename or part} cannot be written: {error.strerror or error}"
        ) from error


def sha256(path: Path) -> str:
    """A file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reserve(file: BinaryIO, part: Path) -> None:
    """Keep other processes from writing the same file; until it is closed.

    Raises:
        DownloadError: another one does.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it may have finished, and what was opened be the finished file.
        free = part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat())
    except BlockingIOError:
        free = False
    if not free:
        raise DownloadError(f"{part} is being written by another process")


@dataclass
class _Download:
    """Fills a file, in as many attempts as it takes.

    Attributes:
        pieced: whether its bytes come from more than one answer.
    """

    url: str
    part: Path
    file: BinaryIO
    progress: Progress | None
    timeout: float
    pause: float
    pieced: bool = False
    _done: int = field(init=False)
    _etag: str | None = None

    def __post_init__(self) -> None:
        self._done = self.file.seek(0, os.SEEK_END)

    def restart(self) -> None:
        """Forget what is there."""
        self.file.truncate(0)
        self._done = self.file.seek(0)
        self.pieced = False

    def run(self) -> None:
        """Until the file is as long as the server says.

        Raises:
            DownloadError: it cannot be had.
        """
        furthest, failures = self._done, 0
        while True:
            try:
                self._attempt()
                return
            except _InterruptedError as error:
                failures = 1 if self._done > furthest else failures + 1
                furthest = max(furthest, self._done)
                if failures == _ATTEMPTS:
                    raise DownloadError(
                        f"{self.url}: {error}; given up after {failures} attempts, "
                        f"{self._done} bytes are in {self.part}"
                    ) from error
            finally:
                self.file.flush()
            time.sleep(self.pause * 2 ** (failures - 1))

    def _attempt(self) -> None:
        answer = self._ask()
        if answer is None:
            return
        with answer:
            total = self._placed(answer)
            self._check_room(total)
            while total is None or self._done < total:
                left = _CHUNK if total is None else min(_CHUNK, total - self._done)
                try:
                    piece = answer.read1(left)
                except TimeoutError as error:
                    raise self._stalled() from error
                except (OSError, HTTPException) as error:
                    raise _InterruptedError(f"the connection broke: {error!r}") from error
                if not piece:
                    break
                self.file.write(piece)
                self._done += len(piece)
                if self.progress is not None:
                    self.progress(self._done, total)
        if total is not None and self._done < total:
            raise _InterruptedError(f"the connection was cut after {self._done} of {total} bytes")

    def _ask(self) -> Any:
        """The server's answer, or None where it says that all of the file is there."""
        headers = {"User-Agent": "posemux"}
        if self._done:
            headers["Range"] = f"bytes={self._done}-"
            if self._etag is not None:
                headers["If-Range"] = self._etag
        try:
            return urlopen(Request(self.url, headers=headers), timeout=self.timeout)
        except HTTPError as error:
            with error:
                said = f"the server answered {error.code} {error.reason}"
                if error.code == _RANGE_NOT_SATISFIABLE and self._done:
                    if error.headers.get("Content-Range") == f"bytes */{self._done}":
                        self.pieced = True
                        return None
                    self.restart()
                elif error.code not in _PASSING:
                    raise DownloadError(f"{self.url}: {said}") from error
            raise _InterruptedError(said) from error
        except URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise self._stalled() from error
            if isinstance(error.reason, ConnectionError | socket.gaierror):
                raise _InterruptedError(f"no connection: {error.reason}") from error
            raise DownloadError(f"{self.url}: {error.reason}") from error
        except TimeoutError as error:
            raise self._stalled() from error
        except (ConnectionError, HTTPException) as error:
            raise _InterruptedError(f"the connection broke: {error!r}") from error

    def _placed(self, answer: Any) -> int | None:
        """Where the answer's bytes belong, made ready; the whole file's length, if it is told."""
        etag = answer.headers.get("ETag", "")
        # A weak one, W/"...", does not promise the same bytes.
        self._etag = etag if etag.startswith('"') else None
        if answer.status == _PARTIAL_CONTENT:
            given = re.fullmatch(
                r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "")
            )
            if given is None or int(given[1]) != self._done:
                self.restart()
                raise _InterruptedError("the server answered with other bytes than asked for")
            self.pieced = True
            return None if given[2] == "*" else int(given[2])
        if self._done:
            self.restart()
        length = answer.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None

    def _check_room(self, total: int | None) -> None:
        """Tell that the disk is too small before it is full."""
        if total is None:
            return
        free = shutil.disk_usage(self.part.parent).free
        if total - self._done > free:
            raise DownloadError(
                f"{self.url}: {(total - self._done) / 1e6:,.1f} MB are to come, and "
                f"{self.part.parent} has room for {free / 1e6:,.1f} MB"
            )

    def _stalled(self) -> _InterruptedError:
        return _InterruptedError(f"nothing came for {self.timeout:g} s")
