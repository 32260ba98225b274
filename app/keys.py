"""API keys: who may ask, and how much. Knows no HTTP."""

from __future__ import annotations

import hmac
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import monotonic

from app.errors import TooManyRequestsError

_logger = logging.getLogger(__name__)

#: Seconds between two looks at whether the file has changed.
_LOOK = 1.0
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([\x21-\x7e]{16,})")
_ACCEPTED = (
    "Accepted: name:key, the name of up to 64 letters, digits, `.`, `_` and `-`, the key of at "
    "least 16 printable characters without spaces"
)


class KeyFile:
    """The keys in a file, which is read again when it has changed.

    A line is `name:key`; empty ones and those that begin with # are passed over. A name may have
    several keys: a new one can be handed out before the old one goes. Of a key only the hash is
    kept. A changed file that cannot be used is logged, and the keys stay as they were.

    Args:
        path: the file.

    Raises:
        ValueError: the file cannot be read, or a line of it, or there is no key in it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.expanduser()
        self._seen = self._state()
        self._names = self._read()
        self._next_look = monotonic() + _LOOK

    @property
    def names(self) -> list[str]:
        """Whose keys there are, sorted."""
        return sorted(set(self._names.values()))

    def name_of(self, key: str) -> str | None:
        """Whose a key is; none's that is not in the file. It takes as long either way."""
        self._look()
        digest = sha256(key.encode()).digest()
        found = None
        for known, name in self._names.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _look(self) -> None:
        now = monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._names = self._read()
        except ValueError as error:
            _logger.error("the API keys stay as they were: %s", error)
        else:
            _logger.info("the API keys were read again, %d of them", len(self._names))

    def _state(self) -> tuple[int, ...] | None:
        """What is another one after a change, a replacement through symbolic links too."""
        try:
            now = self._path.stat()
        except OSError:
            return None
        return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns

    def _read(self) -> dict[bytes, str]:
        # No message may hold a part of a line: any may be a key.
        try:
            lines = self._path.read_text("utf-8-sig", errors="replace").splitlines()
        except OSError as error:
            raise ValueError(f"{self._path}: {error.strerror}") from error
        names: dict[bytes, str] = {}
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line or line.startswith("#"):
                continue
            found = _LINE.fullmatch(line)
            if found is None:
                raise ValueError(f"{self._path}, line {number} is not a key. {_ACCEPTED}")
            name, key = found.groups()
            if names.setdefault(sha256(key.encode()).digest(), name) != name:
                raise ValueError(f"{self._path}, line {number}: the key is another name's already")
        if not names:
            raise ValueError(f"{self._path} has no keys. {_ACCEPTED}")
        return names


@dataclass(slots=True)
class _Allowance:
    """What is left to one name."""

    tokens: float
    filled_at: float
    under_way: int = 0


class Limits:
    """How much each name may ask: a token bucket, and a number of requests at the same time.

    To be used from one thread.

    Args:
        rate: requests a second on average; 0 sets no limit.
        burst: requests at once after a pause: the tokens in a full bucket.
        concurrency: requests under way at the same time; 0 sets no limit.
    """

    def __init__(self, rate: float, burst: int, concurrency: int) -> None:
        self._rate = rate
        self._burst = burst
        self._concurrency = concurrency
        self._allowances: dict[str, _Allowance] = {}

    @contextmanager
    def admit(self, name: str) -> Iterator[None]:
        """Let a request in, which is under way until the context ends.

        Raises:
            TooManyRequestsError: there are too many of this name's.
        """
        now = monotonic()
        allowance = self._allowances.setdefault(name, _Allowance(self._burst, now))
        if self._concurrency and allowance.under_way >= self._concurrency:
            raise TooManyRequestsError(
                f"{allowance.under_way} requests with this key are under way, "
                f"of which {self._concurrency} are accepted at the same time."
            )
        if self._rate:
            earned = self._rate * (now - allowance.filled_at)
            allowance.tokens = min(allowance.tokens + earned, self._burst)
            allowance.filled_at = now
            if allowance.tokens < 1:
                raise TooManyRequestsError(
                    f"There were too many requests with this key. Accepted: {self._rate:g} a "
                    f"second on average, {self._burst} at once.",
                    retry_after=math.ceil((1 - allowance.tokens) / self._rate),
                )
            allowance.tokens -= 1
        allowance.under_way += 1
        try:
            yield
        finally:
            allowance.under_way -= 1
