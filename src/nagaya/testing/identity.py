"""For tests of sign-in: an issuer with keys of its own, a server that publishes them over HTTP, memory in place of
the signing keys' store. Nothing here belongs in a running platform.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self, cast

import joserfc.jws
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from nagaya.errors import ConditionFailed

_MAKERS: Final[Mapping[str, Any]] = {
    "RS256": lambda: RSAKey.generate_key(2048),
    "PS256": lambda: RSAKey.generate_key(2048),
    "ES256": lambda: ECKey.generate_key("P-256"),
    "Ed25519": lambda: OKPKey.generate_key("Ed25519"),
}


class IssuerKey:
    """A key pair of some issuer: signs any header over any claims, good or bad, and shows its public half."""

    def __init__(self, key_id: str, *, algorithm: str = "RS256", key: Key | None = None, **published: Any) -> None:
        """``published`` is added to the public half, such as ``issuer=`` for Entra; None leaves a member out."""
        self.key_id = key_id
        self.algorithm = algorithm
        self.key: Key = key if key is not None else _MAKERS[algorithm]()
        self._published = published

    def public(self) -> dict[str, Any]:
        """The public half as an issuer publishes it (RFC 7517)."""
        jwk: dict[str, Any] = {**self.key.as_dict(private=False), "use": "sig", "alg": self.algorithm}
        jwk |= {"kid": self.key_id, **self._published}
        return {name: value for name, value in jwk.items() if value is not None}

    def sign(self, claims: Mapping[str, Any] | bytes, **header: Any) -> str:
        """A compact token over the claims, or over bytes as they are. ``header`` adds members; None leaves one out."""
        members = {"alg": self.algorithm, "kid": self.key_id, "typ": "JWT", **header}
        members = {name: value for name, value in members.items() if value is not None}
        payload = claims if isinstance(claims, bytes) else json.dumps(dict(claims)).encode()
        return self.sign_segments(json.dumps(members).encode(), payload)

    def sign_segments(self, header: bytes, payload: bytes) -> str:
        """A compact token over a header and a payload of any bytes, signed with this key's own algorithm."""
        signing_input = b".".join(map(segment, (header, payload)))
        model = joserfc.jws.JWSRegistry.algorithms[self.algorithm]
        return (signing_input + b"." + segment(model.sign(signing_input, self.key))).decode("ascii")


def segment(data: bytes) -> bytes:
    """The data as one base64url segment of a token."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class _Page:
    def __init__(self, body: bytes, status: int, headers: Mapping[str, str], delay_s: float) -> None:
        self.body = body
        self.status = status
        self.headers = dict(headers)
        self.delay_s = delay_s


class KeyServer:
    """A small HTTP server on loopback that publishes key sets and counts who asks: ``async with KeyServer() as s``."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self._pages: dict[str, _Page] = {}
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for answering in self._open:
            answering.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    def url(self, path: str = "/keys") -> str:
        """The address of a page."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}{path}"

    def publish(self, *keys: IssuerKey | Mapping[str, Any], path: str = "/keys") -> str:
        """Publish a key set there, in place of what was there. Returns its address."""
        jwks = {"keys": [key.public() if isinstance(key, IssuerKey) else dict(key) for key in keys]}
        return self.publish_page(json.dumps(jwks).encode(), path=path)

    def publish_page(
        self,
        body: bytes,
        *,
        path: str = "/keys",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        delay_s: float = 0.0,
    ) -> str:
        """Publish any bytes with any status, after a delay. Returns the address."""
        self._pages[path] = _Page(body, status, {"Content-Type": "application/json", **(headers or {})}, delay_s)
        return self.url(path)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._open.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode("ascii")
            self.requests[path] += 1
            page = self._pages.get(path) or _Page(b"{}", 404, {"Content-Type": "application/json"}, 0.0)
            await asyncio.sleep(page.delay_s)
            headers = {**page.headers, "Content-Length": str(len(page.body)), "Connection": "close"}
            lines = [f"HTTP/1.1 {page.status} Page", *(f"{name}: {value}" for name, value in headers.items())]
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + page.body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # whoever asked has gone, or the test is over
        finally:
            self._open.discard(task)
            writer.close()


class MemorySigningKeys:
    """A :class:`~nagaya.identity.signing_keys.SigningKeyStore` in memory, which several issuers may share."""

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.revision = 0
        self.loads = 0

    async def load(self) -> tuple[bytes, int] | None:
        self.loads += 1
        return None if self.content is None else (self.content, self.revision)

    async def save(self, content: bytes, *, expect: int) -> None:
        if expect != self.revision:
            raise ConditionFailed
        self.content, self.revision = content, self.revision + 1


class SetClock:
    """A clock that stands until the test moves it."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self._now_us = int(now_s * 1_000_000)
        self._monotonic_us = 0

    def now_us(self) -> int:
        return self._now_us

    def monotonic_s(self) -> float:
        return self._monotonic_us / 1_000_000

    def move_s(self, seconds: float) -> None:
        """Let time pass, on the wall and on the stop-watch."""
        self._now_us += round(seconds * 1_000_000)
        self._monotonic_us += round(seconds * 1_000_000)

    def set_wall_s(self, now_s: float) -> None:
        """Set the wall clock alone, as an administrator or NTP does."""
        self._now_us = int(now_s * 1_000_000)
