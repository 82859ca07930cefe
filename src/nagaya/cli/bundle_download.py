"""A bundle from a running server: what has arrived is kept, and a download that broke off goes on after it."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import msgspec

from nagaya.errors import (
    BundleBroken,
    BundleInTheWay,
    BundleNotBegun,
    InvalidValue,
    ServerRefused,
    ServerUnreachable,
)

if TYPE_CHECKING:
    import httpx

    from nagaya.lifecycle.bundle_format import BundleHeader, BundleRecipient

CONNECT_S: Final = 5.0
SILENT_S: Final = 60.0
_TRIES: Final = 6
"""In a row, without a byte in between."""
_FIRST_WAIT_S: Final = 0.5
_AGAIN: Final = frozenset({429, 500, 502, 503, 504})


async def download(
    url: str, key: str, tenant: str, file: Path, recipient: BundleRecipient | None, *, language: str
) -> BundleHeader:
    """Fetch the bundle of a tenant (or ``tenant/workspace``) into a new file, or, for ``recipient`` None, go on with
    the one in ``file``; gives its header once it is whole and its signature holds.

    ``key`` is an administrator's of that very tenant. Raises ``BundleInTheWay``, ``BundleNotBegun``, ``BundleBroken``,
    ``ServerRefused`` and ``ServerUnreachable``; what has arrived then stays in ``file``.
    """
    import httpx

    handle = await asyncio.to_thread(_opened, file, new=recipient is not None)
    try:
        if recipient is None and await asyncio.to_thread(_mark_of, handle) is None:
            raise BundleNotBegun(place=file, tenant=tenant)
        workspace = {"X-Workspace-Id": tenant} if "/" in tenant else {}
        headers = {"Authorization": f"Bearer {key}", "Accept-Language": language, **workspace}
        headers["X-Tenant-Id"] = tenant.partition("/")[0]
        timeout = httpx.Timeout(SILENT_S, connect=CONNECT_S)
        async with httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=timeout) as client:
            return await _Download(client, url, handle, recipient).run()
    finally:
        await asyncio.to_thread(handle.close)


class _Download:
    def __init__(
        self, client: httpx.AsyncClient, url: str, handle: BinaryIO, recipient: BundleRecipient | None
    ) -> None:
        self._client = client
        self._url = url
        self._handle = handle
        self._recipient = recipient

    async def run(self) -> BundleHeader:
        from nagaya.lifecycle.bundle_format import check_whole

        failures, reached = 0, 0
        while True:
            failed = await self._once()
            if failed is None:
                try:
                    return (await asyncio.to_thread(check_whole, self._handle))[0]
                except BundleBroken as broken:
                    if broken.reason != "cut":
                        raise
                    failed = ServerUnreachable(url=self._url, detail="the answer ended early")
            marked = await asyncio.to_thread(_mark_of, self._handle)
            at = 0 if marked is None else marked.at
            failures = 0 if at > reached else failures + 1
            reached = max(at, reached)
            if failures == _TRIES:
                raise failed
            await asyncio.sleep(_FIRST_WAIT_S * 2**failures)

    async def _once(self) -> ServerUnreachable | ServerRefused | None:
        """Ask for what is missing and keep what comes; what went wrong, if asking again may help."""
        import httpx

        arrived = False
        try:
            async with self._answer() as reply:
                if reply.status_code != 200:
                    refused = _refused(await reply.aread(), reply.status_code, self._url)
                    if reply.status_code in _AGAIN:
                        return refused
                    raise refused
                at = reply.headers.get("x-bundle-at", "")
                if not at.isdigit():
                    raise ServerUnreachable(url=self._url, detail="the answer is no bundle")
                await asyncio.to_thread(_cut, self._handle, int(at))
                arrived = True
                async for piece in reply.aiter_raw():
                    await asyncio.to_thread(self._handle.write, piece)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as broken:
            return ServerUnreachable(url=self._url, detail=str(broken) or type(broken).__name__)
        finally:
            if arrived:
                await asyncio.to_thread(_settle, self._handle)
        return None

    @asynccontextmanager
    async def _answer(self) -> AsyncIterator[httpx.Response]:
        from nagaya.lifecycle.bundle_format import Passphrase

        marked = await asyncio.to_thread(_mark_of, self._handle)
        headers: dict[str, str] = {}
        query: Mapping[str, str] = {}
        if marked is not None:
            headers["X-Bundle-Mark"] = base64.b64encode(marked.mark).decode()
        elif isinstance(self._recipient, Passphrase):
            headers["X-Bundle-Passphrase"] = base64.b64encode(self._recipient.text.encode()).decode()
        else:
            assert self._recipient is not None
            query = {"recipient": self._recipient.public_bytes_raw().hex()}
        async with self._client.stream("GET", "/v1/export", headers=headers, params=query) as reply:
            yield reply


def _mark_of(handle: BinaryIO) -> Any:
    from nagaya.lifecycle.bundle_format import last_mark

    try:
        return last_mark(handle)
    except BundleBroken:
        return None  # not even the header has arrived


def _opened(file: Path, *, new: bool) -> BinaryIO:
    flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if new else 0)
    try:
        return os.fdopen(os.open(file, flags, 0o600), "r+b")
    except FileExistsError:
        raise BundleInTheWay(place=file) from None
    except OSError as failed:
        raise InvalidValue(param="file", at=str(file), detail=failed.strerror or type(failed).__name__) from None


def _cut(handle: BinaryIO, at: int) -> None:
    handle.seek(at)
    handle.truncate()


def _settle(handle: BinaryIO) -> None:
    handle.flush()
    os.fsync(handle.fileno())


def _refused(body: bytes, status: int, url: str) -> ServerRefused | ServerUnreachable:
    try:
        shape = msgspec.json.decode(body, type=dict[str, dict[str, object]])["error"]
        return ServerRefused(str(shape["message"]), shape=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError):
        return ServerUnreachable(url=url, detail=f"HTTP {status}, not Nagaya's error")
