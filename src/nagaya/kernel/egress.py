"""Where this process may connect to on somebody else's word.

A tenant chooses the URL of its model. Without a check it could point at the machine itself, at the network behind
it, or at the cloud's metadata service. The check is of addresses, after the name was resolved, and the connection is
made to the very addresses that were checked: a name that answers differently the second time gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from nagaya.errors import AddressRefused

RESOLVE_S: Final = 5.0
"""How long a name may take to resolve."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

_INSIDE_NAMES: Final = ("localhost", "local", "internal", "localdomain", "home.arpa")
_REFUSED: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's own services to a virtual machine: public in form only
        "192.0.0.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "240.0.0.0/4",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
)
_CARRIERS: Final = ((ipaddress.IPv6Network("64:ff9b::/96"), 0), (ipaddress.IPv6Network("2002::/16"), 80))
"""IPv6 ranges that carry an IPv4 address, and how far from the right it stands: NAT64 and 6to4."""


def is_inside(address: IPAddress) -> bool:
    """Whether an address points anywhere but at the public internet.

    Inside are loopback, private, link-local (also every cloud's metadata service), shared, multicast, unspecified and
    reserved ranges, and IPv6 addresses that carry such an IPv4 address.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if inner is not None:
            return is_inside(inner)
        for network, shift in _CARRIERS:
            if address in network:
                return is_inside(ipaddress.IPv4Address((int(address) >> shift) & 0xFFFF_FFFF))
        if int(address) >> 32 == 0:
            return True
    if any(address.version == network.version and address in network for network in _REFUSED):
        return True
    return not address.is_global or address.is_multicast


def literal_address(host: str) -> IPAddress | None:
    """The address that ``host`` spells, also as ``2130706433``, ``0x7f.1`` or ``017700000001``; None for a name."""
    text = host.strip("[]")
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(text)) if text and " " not in text else None
    except OSError:
        return None


def plain_host(host: str) -> str:
    """``host`` in the one form that is compared: lower case, ASCII, without brackets and final dots.

    Full-width and other look-alike letters become the ASCII letters that a resolver would make of them. Raises
    ``AddressRefused`` for what is no host at all.
    """
    text = host.strip("[]").rstrip(".").lower()
    if not text.isascii():
        try:
            text = text.encode("idna").decode("ascii").rstrip(".").lower()
        except UnicodeError:
            raise AddressRefused(host=host) from None
    if not text or any(mark <= " " or mark in "/\\@?#%\x7f" for mark in text):
        raise AddressRefused(host=host)
    return text


async def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a name, as the machine's resolver gives them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class EgressPolicy:
    """Which hosts may be connected to: every public one, and of those inside only ``allowed_hosts``.

    An entry is a host (``models.corp.example``, ``10.0.0.7``) or a host and port (``127.0.0.1:8080``). An allowed
    name is allowed wherever it resolves to.
    """

    def __init__(self, allowed_hosts: Iterable[str] = (), *, resolver: Resolver = resolve) -> None:
        self._hosts: set[str] = set()
        self._places: set[tuple[str, int]] = set()
        self._resolver = resolver
        for entry in allowed_hosts:
            host, colon, port = entry.rpartition(":")
            if colon and port.isdigit() and (":" not in host or host.startswith("[")):
                self._places.add((self._key(host), int(port)))
            else:
                self._hosts.add(self._key(entry))

    @staticmethod
    def _key(host: str) -> str:
        address = literal_address(host)
        return str(address) if address is not None else plain_host(host)

    def allows(self, host: str, port: int) -> bool:
        """Whether the operator named this host (or host and port)."""
        key = self._key(host)
        return key in self._hosts or (key, port) in self._places

    def check(self, host: str, port: int) -> None:
        """Refuse what can be refused without asking a resolver: literal addresses and names of the inside.

        Raises ``AddressRefused``. Passing says nothing about where a name resolves to.
        """
        if self.allows(host, port):
            return
        address = literal_address(host)
        name = plain_host(host) if address is None else ""
        if address is not None:
            inside = is_inside(address)
        else:
            inside = name in _INSIDE_NAMES or name.endswith(tuple(f".{suffix}" for suffix in _INSIDE_NAMES))
        if inside:
            raise AddressRefused(host=host)

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses to connect to, each checked. Connect to these and to nothing else.

        Raises ``AddressRefused`` where any of them points inside, ``TimeoutError`` or ``OSError`` where the name does
        not resolve. One bad address among good ones refuses them all: it is how a name is rebound.
        """
        self.check(host, port)
        literal = literal_address(host)
        if literal is not None:
            return [str(literal)]
        async with asyncio.timeout(RESOLVE_S):
            found = list(dict.fromkeys(await self._resolver(plain_host(host), port)))
        if not found:
            raise OSError("the name has no address")
        if not self.allows(host, port):
            for text in found:
                address = literal_address(text.partition("%")[0])
                if address is None or is_inside(address):
                    raise AddressRefused(host=host)
        return found
