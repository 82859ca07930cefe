"""Calls from web pages of other origins, where the operator has named these origins."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from nagaya.errors import OriginRefused
from nagaya.kernel.ids import new_id
from nagaya.server.calls import error_reply, language_of
from nagaya.server.door import SECURITY_HEADERS
from nagaya.server.metrics import Metrics

METHODS = ("GET", "POST", "DELETE", "PATCH", "PUT")
EXPOSED = ("x-request-id", "retry-after", "www-authenticate")


class Cors(CORSMiddleware):
    """Answers preflights and marks replies for the origins in ``origins``; all others get no mark.

    Any header may be sent: clients have their own, and nothing here trusts one. Cookies never come along: a page of
    another origin brings a token, which nothing sends behind its back.
    """

    def __init__(self, app: object, origins: Sequence[str], metrics: Metrics, language: str) -> None:
        super().__init__(
            app,  # type: ignore[arg-type]  # the door's messages are dicts, Starlette's are mutable mappings
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=("*",),
            allow_credentials=False,
            expose_headers=EXPOSED,
        )
        self._metrics = metrics
        self._language = language

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a preflight: empty, or an error in the shape of all others."""
        decided = super().preflight_response(request_headers)
        headers = {
            name: value
            for name, value in decided.headers.items()
            if name.startswith("access-control-") or name == "vary"
        }
        headers["x-request-id"] = new_id("req")
        headers |= {name.decode(): value.decode() for name, value in SECURITY_HEADERS}
        if decided.status_code < 400:
            answer = Response(None, 204, headers)
        else:
            reply = error_reply(OriginRefused(), language_of(request_headers.get("accept-language"), self._language))
            answer = Response(reply.body, reply.status, headers, "application/json")
        self._metrics.count("preflight", "OPTIONS", answer.status_code, 0.0)
        return answer
