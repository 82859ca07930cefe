"""The published keys of issuers (JWKS): fetched rarely, kept for long, and never because a stranger asks often.

The address of a key set comes from the registry; nothing in a token names it.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Final
from urllib.parse import urlsplit

import httpx
import structlog

from nagaya.errors import InvalidValue, IssuerUnreachable, NagayaError, TokenRefused
from nagaya.identity.jws import VerificationKey, read_keys, read_object
from nagaya.identity.key_client import is_loopback
from nagaya.kernel.clock import Clock
from nagaya.kernel.egress import EgressPolicy

FETCH_DEADLINE_S: Final = 5.0
BODY_LIMIT_BYTES: Final = 256 * 1024
UNKNOWN_WINDOW_S: Final = 60.0
"""An unknown key id causes at most one fetch of a key set in this time, however many tokens name however many."""
UNKNOWN_MEMORY_S: Final = 300.0
"""How long a key id that a fetch did not find causes no further fetch."""
RETRY_S: Final = 5.0
"""The pause after a failed fetch of a key set of which nothing is held."""
LAST_GOOD_LIMIT_S: Final = 24 * 3600.0
"""How long held keys serve while their issuer cannot be reached: past it, a withdrawn key could live on unseen."""
KEY_SETS_LIMIT: Final = 2048
FETCHES_LIMIT: Final = 16
UNKNOWN_LIMIT: Final = 128

_URL_LIMIT: Final = 2000
_JITTER: Final = 0.1
_JSON_TYPES: Final = ("application/json", "application/jwk-set+json")

log = structlog.get_logger(__name__)
_random = random.SystemRandom()


class _KeySet:
    """One address: what it last published, and when it was last asked. Ages are monotonic seconds."""

    __slots__ = ("fetch", "fetched_at_s", "keys", "refresh_at_s", "tried_at_s", "unknown")

    def __init__(self) -> None:
        self.keys: dict[str, VerificationKey] | None = None
        self.fetched_at_s = 0.0
        self.refresh_at_s = 0.0
        self.tried_at_s: float | None = None
        self.unknown: OrderedDict[str, float] = OrderedDict()
        self.fetch: asyncio.Task[None] | None = None


class KeyCache:
    """Keys by (address, key id). One per process; bounded in key sets, fetches in flight and remembered unknowns.

    ``client`` is closed by whoever opened it; redirects are never followed whatever its settings. Plain ``http`` and
    addresses inside are refused but for loopback and ``allowed_hosts``. ``jitter`` returns a number in [0, 1).
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        clock: Clock,
        *,
        ttl_s: float = 3600.0,
        allowed_hosts: Collection[str] = (),
        jitter: Callable[[], float] = _random.random,
    ) -> None:
        self._client = client
        self._clock = clock
        self._ttl_s = ttl_s
        self._egress = EgressPolicy(allowed_hosts)
        self._jitter = jitter
        self._sets: OrderedDict[str, _KeySet] = OrderedDict()
        self._fetches = asyncio.Semaphore(FETCHES_LIMIT)

    async def key(self, url: str, key_id: str) -> VerificationKey:
        """The key of that id which ``url`` publishes.

        Served from memory; a set past its hour is fetched anew behind the answer. Raises ``TokenRefused`` where there
        is no such key and ``IssuerUnreachable`` where no key set can be had. May be repeated.
        """
        held = self._sets.get(url)
        if held is None:
            self._make_room()
            held = self._sets[url] = _KeySet()
        self._sets.move_to_end(url)
        now_s = self._clock.monotonic_s()
        if held.keys is not None and now_s - held.fetched_at_s >= LAST_GOOD_LIMIT_S:
            held.keys = None
        if held.keys is not None and key_id in held.keys:
            if now_s >= held.refresh_at_s and self._may_fetch(held, now_s, UNKNOWN_WINDOW_S):
                self._begin(url, held)
            return held.keys[key_id]
        looked = await self._look_again(url, held, key_id, now_s)
        if held.keys is None:
            raise IssuerUnreachable(retry_after_s=int(RETRY_S))
        if key_id not in held.keys:
            if looked:
                # Only what a fetch did not find: a key that is published a moment later must not wait for this.
                self._remember_unknown(held, key_id)
            raise TokenRefused("key id is unknown")
        return held.keys[key_id]

    async def close(self) -> None:
        """Stop what is in flight. The client stays open: it belongs to the caller."""
        running = [held.fetch for held in self._sets.values() if held.fetch is not None]
        for fetch in running:
            fetch.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _look_again(self, url: str, held: _KeySet, key_id: str, now_s: float) -> bool:
        """Wait for a fetch where one is due or under way. Whether there was one."""
        window_s = RETRY_S if held.keys is None else UNKNOWN_WINDOW_S
        known_absent = held.keys is not None and now_s < held.unknown.get(key_id, 0.0)
        if held.fetch is None and (known_absent or not self._may_fetch(held, now_s, window_s)):
            return False
        fetch = held.fetch or self._begin(url, held)
        # Whoever waits may be cancelled; the fetch goes on for the others.
        await asyncio.shield(fetch)
        return True

    def _may_fetch(self, held: _KeySet, now_s: float, window_s: float) -> bool:
        return held.fetch is None and (held.tried_at_s is None or now_s - held.tried_at_s >= window_s)

    def _remember_unknown(self, held: _KeySet, key_id: str) -> None:
        if key_id not in held.unknown:
            held.unknown[key_id] = self._clock.monotonic_s() + UNKNOWN_MEMORY_S
            if len(held.unknown) > UNKNOWN_LIMIT:
                held.unknown.popitem(last=False)

    def _make_room(self) -> None:
        if len(self._sets) >= KEY_SETS_LIMIT:
            idle = next((url for url, held in self._sets.items() if held.fetch is None), None)
            if idle is not None:
                del self._sets[idle]

    def _begin(self, url: str, held: _KeySet) -> asyncio.Task[None]:
        held.tried_at_s = self._clock.monotonic_s()
        held.fetch = asyncio.create_task(self._renew(url, held))
        return held.fetch

    async def _renew(self, url: str, held: _KeySet) -> None:
        try:
            async with asyncio.timeout(FETCH_DEADLINE_S), self._fetches:
                # In a thread: a set of a hundred keys takes longer to read than the loop may stand still.
                keys = await asyncio.to_thread(_read_set, await self._fetch(url))
            if not keys:
                raise TokenRefused("key set: no usable key")
        except (NagayaError, httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, RuntimeError) as failed:
            # What is held goes on serving, whatever went wrong (a closed client is a RuntimeError, an odd host name a
            # ValueError). The reason names no part of the answer: it is a stranger's text.
            reason = failed.reason if isinstance(failed, TokenRefused) else type(failed).__name__
            log.warning("a key set could not be fetched", action="jwks.fetch_failed", url=url, reason=reason)
        else:
            held.keys = keys
            held.fetched_at_s = self._clock.monotonic_s()
            held.refresh_at_s = held.fetched_at_s + self._ttl_s * (1 + _JITTER * (2 * self._jitter() - 1))
            for key_id in keys.keys() & held.unknown.keys():
                del held.unknown[key_id]
            log.info("a key set was fetched", action="jwks.fetched", url=url, keys=len(keys))
        finally:
            held.fetch = None

    async def _fetch(self, url: str) -> bytes:
        if not is_fetchable(url, self._egress):
            raise TokenRefused("key set: the address is neither https nor allowed")
        # Uncompressed, so that the limit counts what would be unpacked.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with self._client.stream(
            "GET", url, headers=headers, follow_redirects=False, timeout=FETCH_DEADLINE_S
        ) as answer:
            media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            if answer.status_code != httpx.codes.OK:
                raise TokenRefused(f"key set: status {answer.status_code}")
            if media_type not in _JSON_TYPES or "content-encoding" in answer.headers:
                raise TokenRefused("key set: not plain JSON")
            body = bytearray()
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > BODY_LIMIT_BYTES:
                    raise TokenRefused("key set: larger than 256 KiB")
            return bytes(body)


def _read_set(body: bytes) -> dict[str, VerificationKey]:
    return read_keys(read_object(body, "key set"))


def check_key_url(url: str, egress: EgressPolicy) -> None:
    """Raise ``InvalidValue`` or ``AddressRefused`` unless keys may be fetched there: over https from the public
    internet, from this machine, or from a host inside that the operator allows; from the latter two also in clear."""
    try:
        parts = urlsplit(url)
        host, secret = parts.hostname or "", parts.username is not None or parts.password is not None
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise _refused_url("it is not a URL") from None
    if (
        parts.scheme not in ("https", "http")
        or not host
        or not url.isprintable()
        or " " in url
        or len(url) > _URL_LIMIT
    ):
        raise _refused_url(f"it is an https:// URL of at most {_URL_LIMIT} characters")
    if secret:
        raise _refused_url("it must not hold a user name or password: published keys are no secret")
    if is_loopback(host) or egress.allows(host, port):
        return
    if parts.scheme == "http":
        raise _refused_url("keys come over https, or in clear from this machine or a host in `allowed_hosts`")
    egress.check(host, port)


def _refused_url(detail: str) -> InvalidValue:
    return InvalidValue(param="jwks_url", at="jwks_url", detail=detail)


def is_fetchable(url: str, egress: EgressPolicy) -> bool:
    """Whether :func:`check_key_url` raises nothing."""
    try:
        check_key_url(url, egress)
    except NagayaError:
        return False
    return True
