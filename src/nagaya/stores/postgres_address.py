"""What a ``postgresql://`` address says, and how a connection to it is made: checked, encrypted, bounded in time."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg
import msgspec

from nagaya.adapters import Surroundings
from nagaya.errors import InvalidValue
from nagaya.kernel.egress import EgressPolicy

SECRET: Final = "postgresql-connection"  # noqa: S105 - the name of a secret, not one
"""The room's secret with user and password: ``{"user": …, "password": …, "ca": PEM of a private authority}``."""

CONNECT_S: Final = 5.0
IN_ALL: Final = 40
"""Connections of one house where its address does not say (``?connections=``)."""

ISOLATIONS: Final = ("schema", "database", "shared")
_SSL_MODES: Final = ("verify-full", "require", "disable")
_KNOWN: Final = frozenset({"isolation", "sslmode", "connections", "host", "port", "region"})
_SESSION: Final = {
    "application_name": "nagaya",
    "search_path": "pg_catalog",
    # An acknowledged write is on the disk, whatever the server's default.
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    # Every statement is a look-up by the primary key; a plan made while a table was small must not scan it later.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
}


class Credentials(msgspec.Struct, frozen=True):
    """What the secret holds. Unknown fields are ignored."""

    user: str | None = None
    password: str | None = None
    ca: str | None = None


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """A ``postgresql://`` URL, read. ``socket_folder`` stands in place of a host for a server on this machine."""

    host: str
    port: int
    database: str
    user: str | None
    password: str | None
    socket_folder: str | None
    isolation: str
    ssl_mode: str
    connections: int
    region: str | None


def parse_address(url: str) -> Address:
    """Read a URL such as ``postgresql://db.example.com:5432/nagaya?isolation=schema``. Raises ``InvalidValue``.

    ``isolation``: ``schema`` (default), ``database`` or ``shared``. ``sslmode``: ``verify-full`` (default away from
    this machine), ``require`` or ``disable``. ``connections``: how many in all, 1 to 1,000. ``host``: a folder with
    the server's socket. ``region``: where the server stands, for tenants that are pinned.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
        options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError:
        raise _refuse("it is not a URL such as postgresql://db.example.com:5432/nagaya") from None
    unknown = sorted(set(options) - _KNOWN)
    if unknown:
        raise _refuse(f"'{unknown[0][:40]}' is not known in it; use {', '.join(sorted(_KNOWN))}")
    database = unquote(parts.path.removeprefix("/"))
    if not database or "/" in database or "\0" in database or len(database.encode()) > 63:
        raise _refuse("it ends with the name of a database")
    folder = options.get("host")
    if bool(host) == bool(folder) or (folder is not None and not folder.startswith("/")):
        raise _refuse("it has one host, or none and ?host=/folder/of/the/socket")
    isolation = options.get("isolation", "schema")
    if isolation not in ISOLATIONS:
        raise _refuse(f"isolation is {', '.join(ISOLATIONS)}")
    ssl_mode = options.get("sslmode", "disable" if folder or _on_this_machine(host or "") else "verify-full")
    if ssl_mode not in _SSL_MODES:
        raise _refuse(f"sslmode is {', '.join(_SSL_MODES)}")
    connections = options.get("connections", str(IN_ALL))
    if not connections.isdecimal() or not 1 <= int(connections) <= 1000:
        raise _refuse("connections is a number from 1 to 1000")
    at = options.get("port", str(port or 5432))
    if not at.isdecimal() or not 1 <= int(at) <= 65535:
        raise _refuse("port is a number from 1 to 65535")
    return Address(
        host=host or "localhost",
        port=int(at),
        database=database,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        socket_folder=folder,
        isolation=isolation,
        ssl_mode=ssl_mode,
        connections=int(connections),
        region=options.get("region"),
    )


class Dialer:
    """Makes connections to one server, as one user."""

    def __init__(
        self, address: Address, credentials: Credentials, egress: EgressPolicy | None, *, limit_s: float = CONNECT_S
    ) -> None:
        self._address = address
        self._egress = egress
        self._limit_s = limit_s
        user = credentials.user or address.user
        if not user:
            raise _refuse(f"no user is known; put user and password into the tenant's secret '{SECRET}'")
        password = credentials.password or address.password or ""
        self.key: Final = (
            (address.host, address.port, address.socket_folder, address.ssl_mode, user, egress is None),
            hashlib.sha256(msgspec.json.encode([password, credentials.ca])).digest(),
        )
        """Equal for those who come to the same server as the same user in the same way."""
        # Everything is said here: what is left out, the driver would take from this process's environment and from
        # password files, and a tenant's server must not be sent the platform's password.
        self._plain: dict[str, Any] = {
            "port": address.port,
            "user": user,
            "password": password,
            "target_session_attrs": "any",
            "timeout": limit_s,
            "statement_cache_size": 200,
            "max_cached_statement_lifetime": 0,
            "server_settings": _SESSION,
            "ssl": _tls(address, credentials.ca),
        }

    async def connect(self, database: str) -> asyncpg.Connection:
        """A new connection within ``limit_s``. Raises ``AddressRefused``, ``OSError``, ``TimeoutError`` and the
        server's errors."""
        if self._address.socket_folder is not None:
            if self._egress is not None:
                self._egress.check("localhost", self._address.port)
            hosts: Sequence[str] = [self._address.socket_folder]
        elif self._egress is not None:
            hosts = await self._egress.addresses(self._address.host, self._address.port)
        else:
            hosts = [self._address.host]
        lost: BaseException = OSError("the name has no address")
        async with asyncio.timeout(self._limit_s):
            for host in hosts:
                try:
                    connection: asyncpg.Connection = await asyncpg.connect(host=host, database=database, **self._plain)
                except OSError as failed:
                    lost = failed
                    continue
                _keep_alive(connection)
                return connection
        raise lost


async def dial(address: Address, surroundings: Surroundings) -> Dialer:
    """The way to an address from a room: with its secret, inside its regions, past the egress policy.

    The platform's own rooms go wherever the operator's configuration points. Raises ``InvalidValue``.
    """
    if surroundings.regions and address.region not in surroundings.regions:
        allowed = ", ".join(surroundings.regions)
        raise _refuse(f"it must say region=…, one of the tenant's regions ({allowed})")
    held = await surroundings.secret(SECRET)
    try:
        credentials = Credentials() if held is None else msgspec.json.decode(held, type=Credentials)
    except msgspec.MsgspecError:
        raise InvalidValue(
            param=SECRET, at=SECRET, detail='it is JSON such as {"user": "…", "password": "…"}'
        ) from None
    return Dialer(address, credentials, None if surroundings.room.startswith("_") else surroundings.egress)


def _refuse(detail: str) -> InvalidValue:
    return InvalidValue(param="store", at="store", detail=detail)


def _on_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Named(ssl.SSLContext):
    """A context that checks the certificate against the name in the URL, although the checked address is dialled."""

    name: str

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        return super().wrap_bio(*arguments, **(named | {"server_hostname": self.name}))


def _tls(address: Address, authority: str | None) -> ssl.SSLContext | bool:
    if address.ssl_mode == "disable":
        return False
    context = _Named(ssl.PROTOCOL_TLS_CLIENT)
    context.name = address.host
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if address.ssl_mode == "require":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif authority is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(cadata=authority)
        except (ssl.SSLError, ValueError):
            raise InvalidValue(param=SECRET, at=f"{SECRET}.ca", detail="it is a PEM certificate") from None
    return context


def _keep_alive(connection: asyncpg.Connection) -> None:
    """Let the operating system find out about a peer that vanished without a word."""
    transport: Any = connection._transport  # type: ignore[attr-defined]  # the driver has no public way to its socket
    held = transport.get_extra_info("socket")
    if held is None or held.family not in (socket.AF_INET, socket.AF_INET6):
        return
    held.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 15_000)):
        if hasattr(socket, name):
            held.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
