"""Requests, answers, and when to try again: all that the two clients share.

Nothing in here sends or waits. An exchange is a generator: it yields a request to be sent, and is
sent the response or the transport's error; or it yields seconds to be waited. So the clients differ
only in how they do these two things.
"""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

import httpx
import numpy as np
import numpy.typing as npt

from posemux_client.errors import KINDS, PosemuxError, ProblemError, UnreachableError
from posemux_client.results import Models, Poses

T = TypeVar("T")

#: An encoded image, the path of one, or pixels: `(H, W, 3)` uint8 RGB.
Image: TypeAlias = bytes | str | os.PathLike[str] | npt.NDArray[np.uint8]

Step: TypeAlias = httpx.Request | float
Outcome: TypeAlias = httpx.Response | httpx.TransportError | None
Exchange: TypeAlias = Generator[Step, Outcome, T]

#: Statuses that say "not now"; 502 is what a proxy says of a service that is just starting anew.
_LATER = (429, 502, 503)
#: What happens to connections at such times. The service has no state that a request could change,
#: so that it does no harm to ask twice.
_CUT = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError)
#: Seconds before another try where nobody says how many: twice as many each time, up to so many.
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 8.0
#: So much longer, at most, each client waits: those that were sent away together come back apart.
_SPREAD = 0.25


class Options(TypedDict, total=False):
    """What may be asked for; what is left out is the service's to choose."""

    representation: Literal["simcc", "dark", "pct"]
    """How the network writes a pose down."""
    model: str
    """A pose model's name, in place of a representation."""
    boxes: npt.ArrayLike
    """`(P, 4)` as `x1, y1, x2, y2`: the people, so that nobody is looked for; of one image."""
    min_score: float
    """Detected people of lower scores are left out."""
    max_people: int
    """Of more detected people, the best so many are kept."""
    flip_test: bool
    """Average with the mirror image: a little better, twice the price."""
    explain: bool
    """Tell what the joints were decoded from, of one image."""
    request_id: str
    """By which the service's log calls the request, in place of a name of its own."""


class Exchanges:
    """Makes the exchanges of a client.

    Args:
        build: makes a request, as `httpx.Client.build_request`.
        url: the service's address.
        api_key: the key, if there is one.
        timeout: seconds that a single try may take.
        patience: seconds after which a call is not tried again.
        clock: tells the seconds.
    """

    def __init__(
        self,
        build: Callable[..., httpx.Request],
        url: str,
        api_key: str | None,
        timeout: float,
        patience: float,
        clock: Callable[[], float],
    ) -> None:
        self._build = build
        self._url = url.rstrip("/")
        self._headers = {} if api_key is None else {"X-API-Key": api_key}
        self._timeout = timeout
        self._patience = patience
        self._clock = clock
        self._models = Models("", {})

    def models(self) -> Exchange[Models]:
        """Ask which pose models there are."""
        response = yield from self._ask("GET", "/models", {})
        with _understanding(response):
            self._models = Models.read(response.json())
        return self._models

    def pose(self, images: Sequence[Image], options: Options) -> Exchange[list[Poses]]:
        """Ask for the poses in images, all in one request."""
        response = yield from self._ask_for(images, options, "application/json")
        with _understanding(response):
            body = response.json()
            name = body["model"]
        if name not in self._models.by_name:
            yield from self.models()
        with _understanding(response):
            return Poses.read(body, self._models.by_name[name])

    def draw(self, image: Image, media_type: str, options: Options) -> Exchange[bytes]:
        """Ask for an image with the poses drawn onto it."""
        response = yield from self._ask_for([image], options, media_type)
        return response.content

    def _ask_for(
        self, images: Sequence[Image], options: Options, accept: str
    ) -> Exchange[httpx.Response]:
        headers = {"Accept": accept}
        if options.get("request_id") is not None:
            headers["X-Request-ID"] = options["request_id"]
        asked: dict[str, Any] = {"params": _query(options)}
        encoded = [_encoded(image) for image in images]
        if len(encoded) == 1:
            asked["content"] = encoded[0]
            headers["Content-Type"] = "application/octet-stream"
        else:
            asked["files"] = [("image", (str(i), data)) for i, data in enumerate(encoded)]
        return (yield from self._ask("POST", "/pose", headers, **asked))

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str], **asked: Any
    ) -> Exchange[httpx.Response]:
        """Ask, and again while that makes sense and there is patience."""
        request = self._build(
            method,
            self._url + path,
            headers={**self._headers, **headers},
            timeout=self._timeout,
            **asked,
        )
        end = self._clock() + self._patience
        for tries in count():
            outcome = yield request
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return outcome
            error, wait = _judge(outcome, tries)
            if wait is None or self._clock() + wait > end:
                raise error
            yield wait
        raise AssertionError


@contextmanager
def _understanding(response: httpx.Response) -> Iterator[None]:
    """Say so where an answer is not what it should be: perhaps it is not posemux that answers."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise PosemuxError(
            f"{response.url} answered something else than posemux does: {response.text[:200]!r}"
        ) from error


def _judge(outcome: Outcome, tries: int) -> tuple[PosemuxError, float | None]:
    """What went wrong, and seconds after which to try again, if at all."""
    otherwise = min(_FIRST_WAIT * 2**tries, _LONGEST_WAIT)
    if isinstance(outcome, httpx.Response):
        problem = _problem(outcome)
        wait = otherwise if problem.retry_after is None else problem.retry_after
        again = problem.status in _LATER
        error: PosemuxError = problem
    else:
        error = UnreachableError(f"{type(outcome).__name__}: {outcome}")
        error.__cause__ = outcome
        wait, again = otherwise, isinstance(outcome, _CUT)
    return error, wait * random.uniform(1, 1 + _SPREAD) if again else None


def _problem(response: httpx.Response) -> ProblemError:
    try:
        body = dict(response.json())
    except (ValueError, TypeError):
        body = {"title": response.reason_phrase, "detail": response.text[:200]}
    body.setdefault("request_id", response.headers.get("X-Request-ID"))
    kind = KINDS.get(str(body.get("type")), ProblemError)
    return kind(response.status_code, body, _seconds(response.headers.get("Retry-After")))


def _seconds(retry_after: str | None) -> float | None:
    """Both forms of the header `Retry-After` as seconds from now (RFC 9110, 10.2.3)."""
    if retry_after is None:
        return None
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)


def _query(options: Options) -> dict[str, str]:
    given: Mapping[str, Any] = options
    if unknown := given.keys() - Options.__annotations__.keys():
        known = ", ".join(Options.__annotations__)
        raise TypeError(f"there is no option {', '.join(sorted(unknown))}; known are {known}")
    query = {}
    for name, value in given.items():
        if name == "request_id" or value is None:
            continue
        if name == "boxes":
            query[name] = json.dumps(np.asarray(value, np.float64).reshape(-1, 4).tolist())
        else:
            query[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return query


def _encoded(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        return _bmp(image)
    return Path(image).read_bytes()


def _bmp(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Pixels as a BMP, which costs no time to write and loses nothing."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"an image of {pixels.dtype} {pixels.shape} is not accepted: it must be uint8 RGB of "
            "(height, width, 3)"
        )
    height, width = pixels.shape[:2]
    # Each row takes a multiple of four bytes, blue first; a negative height: from the top down.
    rows = np.zeros((height, -(-3 * width // 4) * 4), np.uint8)
    rows[:, : 3 * width] = pixels[..., ::-1].reshape(height, 3 * width)
    start = 14 + 40
    head = struct.pack("<2sIHHI", b"BM", start + rows.size, 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 24, 0, rows.size, 0, 0, 0, 0)
    return head + info + rows.tobytes()
