"""HTTP/1.1 for clients that take their time: a request's head must come whole, soon, and in reasonable size.

Without this a few thousand sockets that send a byte a minute hold a server for nothing.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nagaya.errors import HeadTooLarge, NagayaError, NotHttp
from nagaya.kernel.ids import new_id
from nagaya.server.calls import error_reply
from nagaya.server.door import SECURITY_HEADERS

HEAD_S: Final = 10.0
"""From the first byte of a request (of a connection: from its opening) until its head must be whole, in seconds."""
HEAD_LIMIT_BYTES: Final = 64 * 1024
UNREAD_LIMIT_BYTES: Final = 8 * 1024 * 1024
"""What of a body may still come after its request was answered, such as a refused upload, before the connection is
dropped. Short bodies are let in to their end, so that the client is there to read the answer."""
LINGER_S: Final = 30.0
"""How long an answer may lie unread after it was finished before the connection is dropped, in seconds."""


class PatientHttp(HttpToolsProtocol):
    """uvicorn's protocol with a deadline and a size for the head of every request.

    A head that arrives in one piece, as nearly all do, costs no timer.
    """

    _head_deadline: asyncio.TimerHandle | None = None
    _in_head = False
    _head_bytes = 0
    _unread_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        self._head_deadline = self.loop.call_later(HEAD_S, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_head_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT_BYTES:
                self._refuse(HeadTooLarge(limit_bytes=HEAD_LIMIT_BYTES))
                return
        elif (self.cycle is not None and not self.cycle.response_complete) or self.timeout_keep_alive_task is not None:
            return
        else:
            self._unread_bytes += len(data)
            if self._unread_bytes > UNREAD_LIMIT_BYTES:
                self.transport.close()
                return
        # Bytes came, and neither a whole head nor anything else that ends by itself: blank lines before a request
        # and a body that nobody reads would otherwise hold the connection for ever.
        if self._head_deadline is None:
            self._head_deadline = self.loop.call_later(HEAD_S, self._too_slow)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets the error shape like everything else that is refused."""
        self._refuse(NotHttp())

    def _refuse(self, problem: NagayaError) -> None:
        reply = error_reply(problem, "en", more=((b"connection", b"close"),))
        length = (b"content-length", b"%d" % len(reply.body))
        request_id = (b"x-request-id", new_id("req").encode())
        head = b"".join(b"%b: %b\r\n" % header for header in (*reply.headers, length, request_id, *SECURITY_HEADERS))
        phrase = HTTPStatus(reply.status).phrase.encode()
        self.transport.write(b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (reply.status, phrase, head, reply.body))
        self.transport.close()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._unread_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_deadline is not None:
            self._unset_head_deadline()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._drop_if_unread()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._drop_if_unread()

    def _drop_if_unread(self) -> None:
        # A closing transport waits until its reader has taken everything; some never do.
        if self.transport.get_write_buffer_size():
            self.loop.call_later(LINGER_S, self.transport.abort)

    def _too_slow(self) -> None:
        self._head_deadline = None
        if not self.transport.is_closing():
            self.transport.close()

    def _unset_head_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None
