"""Where vendors' clients may connect: names resolve to addresses that the egress policy has checked."""

from __future__ import annotations

import ipaddress
import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from nagaya.kernel.egress import EgressPolicy


class CheckedResolver(AbstractResolver):
    """Resolves a name to addresses that were checked; the connection goes to these very ones."""

    def __init__(self, egress: EgressPolicy) -> None:
        self._egress = egress

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in await self._egress.addresses(host, port)
        ]

    async def close(self) -> None:
        """Nothing is held."""
