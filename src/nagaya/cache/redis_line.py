"""The line to Redis or Valkey: connections of one process, a deadline for every question, rest while it is away."""

from __future__ import annotations

import hashlib
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import structlog
from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from nagaya.errors import CacheUnreachable, SettingsInvalid
from nagaya.kernel.breaker import Breaker
from nagaya.kernel.clock import Clock
from nagaya.kernel.deadline import within
from nagaya.settings import read_reference

DEADLINE_S: Final = 1.0
CONNECTIONS: Final = 16
"""From one process; and one more that listens."""

PORT: Final = 6379
_DATABASES: Final = 2**31

_log = structlog.get_logger(__name__)


class Script:
    """A Lua script, known to the server by its hash after it was run once."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class RedisLine:
    """Redis or Valkey at one address: ``redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]``, ``rediss://`` for TLS (with
    ``?ca=FILE`` for an authority of one's own), or ``env://NAME`` for a variable that holds such an address.

    Nothing is connected before the first question. To be used in one event loop. Raises ``SettingsInvalid``.
    """

    def __init__(self, url: str, clock: Clock, *, deadline_s: float = DEADLINE_S) -> None:
        arguments, is_tls = _arguments(read_reference(url) if url.startswith("env://") else url)
        self.database: Final[int] = arguments["db"]
        self._deadline_s = deadline_s
        self._breaker = Breaker(clock, failures=3, rest_s=0.5, longest_rest_s=5.0)
        self._client = Redis.from_pool(
            BlockingConnectionPool(
                CONNECTIONS,
                timeout=deadline_s,
                connection_class=SSLConnection if is_tls else Connection,
                socket_timeout=deadline_s,
                socket_connect_timeout=deadline_s,
                # A counter that is raised twice would be wrong, so nothing is sent twice by itself.
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                driver_info=None,
                **arguments,
            )
        )
        self._failing = False

    async def ask(self, *command: Any) -> Any:
        """The server's answer to a command. Raises ``CacheUnreachable``, also without asking while it rests."""
        if not self._breaker.admit():
            raise CacheUnreachable
        try:
            answer = await within(self._deadline_s, self._send(*command))
        except NoScriptError:
            self._breaker.succeeded()
            raise
        except (RedisError, OSError, TimeoutError) as failed:
            self._breaker.failed()
            if not self._failing:
                self._failing = True
                # The kind alone: a server may repeat what it was sent.
                _log.warning("the shared cache is away", action="redis.away", kind=type(failed).__name__)
            raise CacheUnreachable from failed
        except BaseException:
            self._breaker.undecided()
            raise
        self._breaker.succeeded()
        if self._failing:
            self._failing = False
            _log.info("the shared cache answers again", action="redis.back")
        return answer

    async def run(self, script: Script, keys: tuple[bytes, ...], *arguments: bytes | int) -> Any:
        """What the script answers. Raises ``CacheUnreachable``."""
        try:
            return await self.ask("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self.ask("EVAL", script.source, len(keys), *keys, *arguments)

    async def _send(self, *command: Any) -> Any:
        return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py leaves it so

    def listener(self) -> PubSub:
        """A connection of its own, to subscribe with."""
        return self._client.pubsub(ignore_subscribe_messages=True)

    async def close(self) -> None:
        """Close every connection. May be repeated."""
        await self._client.aclose(close_connection_pool=True)


def _arguments(url: str) -> tuple[dict[str, Any], bool]:
    """What the client takes, and whether it speaks TLS. Errors never repeat the address: it may hold a password."""
    try:
        parts: SplitResult = urlsplit(url)
        port = parts.port or PORT
    except ValueError:
        raise _refuse("it is not a URL") from None
    database = parts.path.removeprefix("/") or "0"
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise _refuse("it is a redis:// or rediss:// URL with a host")
    if not (database.isascii() and database.isdecimal() and int(database) < _DATABASES):
        raise _refuse("after the host comes the database's number, or nothing")
    query = dict(parse_qsl(parts.query))
    is_tls = parts.scheme == "rediss"
    if parts.fragment or set(query) - ({"ca"} if is_tls else set()):
        raise _refuse("its only option is ?ca=FILE, for rediss://")
    arguments: dict[str, Any] = {"host": parts.hostname, "port": port, "db": int(database)}
    if parts.password is not None:
        arguments["password"] = unquote(parts.password)
    if parts.username:
        arguments["username"] = unquote(parts.username)
    if is_tls:
        arguments |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": query.get("ca")}
    return arguments, is_tls


def _refuse(problem: str) -> SettingsInvalid:
    return SettingsInvalid(name="redis", problem=problem)
