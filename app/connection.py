"""uvicorn's connections, with the limits that it leaves to a proxy.

Without them a connection may send a head of any size, or none, or a body a byte a minute, and may
take no answer, for as long as it likes.
"""

from __future__ import annotations

import logging
from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

#: Bytes of a request's first line and headers; four pages of boxes fit.
MAX_HEAD_BYTES = 64 * 2**10
#: A head that is not in by then ends the connection, as does none at all on a new one.
HEAD_SECONDS = 10.0
#: The route answers a slow body itself, just before.
_GRACE_SECONDS = 5.0
_SILENT = logging.getLogger(f"{__name__}.silent")
_SILENT.setLevel(logging.CRITICAL + 1)


class Connection(HttpToolsProtocol):
    """One client's connection.

    Args:
        transfer_seconds: how long a body may take to come in, and how long a client may take
            nothing of what is sent to it.
        arguments: uvicorn's own.
    """

    def __init__(self, *arguments: Any, transfer_seconds: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._transfer_seconds = transfer_seconds
        self._head_bytes = 0
        self._in_head = False
        self._incoming: TimerHandle | None = None
        self._outgoing: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for a first request, but not for ever."""
        super().connection_made(transport)
        self._expect(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        for timer in (self._incoming, self._outgoing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read some more, unless the head has become too long."""
        super().data_received(data)
        if self.transport.get_protocol() is not self:
            return  # It is a stream now.
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"The head has more than {MAX_HEAD_BYTES} bytes.")
        elif self._incoming is None and self.cycle.response_complete:
            # Line ends, which uvicorn takes for a sign of life.
            self._expect(HEAD_SECONDS)

    def on_message_begin(self) -> None:
        """Begin a request's head."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._expect(HEAD_SECONDS)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those behind a body, which nothing here reads, are dropped."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End a request's head."""
        self._in_head = False
        self._expect(self._transfer_seconds + _GRACE_SECONDS)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End a request."""
        self._expect(None)
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Become a stream, whose limits are its own."""
        self._expect(None)
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        """Wait for the client to take what it was sent, but not for ever."""
        super().pause_writing()
        self._outgoing = self.loop.call_later(self._transfer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on sending."""
        super().resume_writing()
        if self._outgoing is not None:
            self._outgoing.cancel()

    def _expect(self, seconds: float | None) -> None:
        """Hang up unless something comes within so many seconds."""
        if self._incoming is not None:
            self._incoming.cancel()
        self._incoming = None
        if seconds is not None:
            self._incoming = self.loop.call_later(seconds, self.transport.abort)


class StreamConnection(WebSocketsSansIOProtocol):
    """One client's WebSocket.

    Args:
        transfer_seconds: how long a client may take nothing of what is sent to it.
        arguments: uvicorn's own.
    """

    def __init__(self, *arguments: Any, transfer_seconds: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # What there is to tell, app.api.requests does: uvicorn would write down what the client
        # made up, and calls a stream that is not let in an error.
        self.logger = self.conn.logger = _SILENT
        self._transfer_seconds = transfer_seconds
        self._outgoing: TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_waiting()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for the client to take what it was sent, but not for ever."""
        super().pause_writing()
        self._outgoing = self.loop.call_later(self._transfer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on sending."""
        super().resume_writing()
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._outgoing is not None:
            self._outgoing.cancel()
