"""The HTTP client that key sets are fetched with: it connects only where the egress policy lets it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import httpcore
import httpx

from nagaya.kernel.egress import EgressPolicy


def key_client(egress: EgressPolicy) -> httpx.AsyncClient:
    """A client for :class:`nagaya.identity.jwks.KeyCache`, to be closed by the caller.

    Where the machine's environment names a proxy, the proxy connects, and what it lets through is the operator's.
    """
    transport = httpx.AsyncHTTPTransport()
    transport._pool._network_backend = CheckedBackend(egress)
    client = httpx.AsyncClient(follow_redirects=False)
    # Given as ``transport``, it would shut the environment's proxies out.
    client._transport = transport
    return client


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name, checks every address, and connects to those very ones: a name that answers differently the
    second time gains nothing. TLS still verifies the name. This machine itself may be named, by its address or as
    ``localhost``."""

    def __init__(self, egress: EgressPolicy) -> None:
        self._egress = egress
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first checked address that answers. Raises ``AddressRefused``, and httpcore's errors."""
        lost: Exception = httpcore.ConnectError("the name has no address")
        for address in await self._addresses(host, port):
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                lost = failed
        raise lost

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)

    async def _addresses(self, host: str, port: int) -> list[str]:
        if is_loopback(host):
            return [host]
        try:
            return await self._egress.addresses(host, port)
        except TimeoutError as late:
            raise httpcore.ConnectTimeout("the name did not resolve in time") from late
        except OSError as absent:
            raise httpcore.ConnectError("the name does not resolve") from absent


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, said so in as many words: a name that only resolves to it is not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
