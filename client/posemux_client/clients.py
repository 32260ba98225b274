"""The clients: one that waits, and one for `async`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Self, TypeVar, Unpack

import httpx

from posemux_client.exchange import Exchange, Exchanges, Image, Options, Outcome
from posemux_client.results import Models, Poses

T = TypeVar("T")

_TIMEOUT = 30.0
_PATIENCE = 60.0
#: Each of many calls at once has a connection: what is too much, the service says.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)


class Client:
    """Asks a posemux service. To be closed, or used as a context manager; for many threads.

    A service that is busy, shutting down or not ready yet, and a connection that is cut, are no
    errors at first: the call is repeated when the service says so, for as long as there is
    patience.

    Args:
        url: the service's address, such as `http://localhost:8000`.
        api_key: the key, where the service wants one.
        timeout: seconds that a single try may take.
        patience: seconds after which a call is not tried again; 0 tries once.
        http: what sends requests, in place of an own one: for certificates, proxies and the like.
            It is not closed.
        sleep: waits so many seconds.
        clock: tells the seconds.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        *,
        api_key: str | None = None,
        timeout: float = _TIMEOUT,
        patience: float = _PATIENCE,
        http: httpx.Client | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = http is None
        self._http = http or httpx.Client(limits=_LIMITS)
        self._exchanges = Exchanges(
            self._http.build_request, url, api_key, timeout, patience, clock
        )
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._own:
            self._http.close()

    def pose(self, image: Image, **options: Unpack[Options]) -> Poses:
        """Find the people in an image and where their joints are.

        Args:
            image: encoded bytes, a path, or pixels `(H, W, 3)` uint8 RGB, which are sent
                uncompressed.
            **options: see `Options`.

        Raises:
            OSError: the file cannot be read.
            ProblemError: the service answered with an error.
            UnreachableError: it did not answer.
        """
        [poses] = self.pose_many([image], **options)
        return poses

    def pose_many(self, images: Sequence[Image], **options: Unpack[Options]) -> list[Poses]:
        """As `pose`, of several images in one request; the service takes so many (16)."""
        return self._run(self._exchanges.pose(images, options))

    def draw(
        self, image: Image, format: Literal["jpeg", "png"] = "jpeg", **options: Unpack[Options]
    ) -> bytes:
        """As `pose`, but the answer is the encoded image with the poses drawn onto it."""
        return self._run(self._exchanges.draw(image, f"image/{format}", options))

    def models(self) -> Models:
        """Ask which pose models the service knows.

        Raises:
            ProblemError: the service answered with an error.
            UnreachableError: it did not answer.
        """
        return self._run(self._exchanges.models())

    def _run(self, exchange: Exchange[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = exchange.send(outcome)
            except StopIteration as done:
                answer: T = done.value
                return answer
            outcome = None
            if isinstance(step, httpx.Request):
                try:
                    outcome = self._http.send(step)
                except httpx.TransportError as error:
                    outcome = error
            else:
                self._sleep(step)


class AsyncClient:
    """`Client` for `async`: the same methods, to be awaited, and the same arguments.

    Args:
        url: see `Client`.
        api_key: see `Client`.
        timeout: see `Client`.
        patience: see `Client`.
        http: see `Client`.
        sleep: waits so many seconds; `trio.sleep` under trio.
        clock: see `Client`.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        *,
        api_key: str | None = None,
        timeout: float = _TIMEOUT,
        patience: float = _PATIENCE,
        http: httpx.AsyncClient | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = http is None
        self._http = http or httpx.AsyncClient(limits=_LIMITS)
        self._exchanges = Exchanges(
            self._http.build_request, url, api_key, timeout, patience, clock
        )
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See `Client.close`."""
        if self._own:
            await self._http.aclose()

    async def pose(self, image: Image, **options: Unpack[Options]) -> Poses:
        """See `Client.pose`."""
        [poses] = await self.pose_many([image], **options)
        return poses

    async def pose_many(self, images: Sequence[Image], **options: Unpack[Options]) -> list[Poses]:
        """See `Client.pose_many`."""
        return await self._run(self._exchanges.pose(images, options))

    async def draw(
        self, image: Image, format: Literal["jpeg", "png"] = "jpeg", **options: Unpack[Options]
    ) -> bytes:
        """See `Client.draw`."""
        return await self._run(self._exchanges.draw(image, f"image/{format}", options))

    async def models(self) -> Models:
        """See `Client.models`."""
        return await self._run(self._exchanges.models())

    async def _run(self, exchange: Exchange[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = exchange.send(outcome)
            except StopIteration as done:
                answer: T = done.value
                return answer
            outcome = None
            if isinstance(step, httpx.Request):
                try:
                    outcome = await self._http.send(step)
                except httpx.TransportError as error:
                    outcome = error
            else:
                await self._sleep(step)
