"""A channel over Redis or Valkey's publish and subscribe."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

import structlog
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from nagaya.cache.redis_line import RedisLine
from nagaya.kernel.deadline import within

PING_S: Final = 5.0
"""A line that is silent for so long is asked whether it still lives."""

ANSWER_S: Final = 2.0
REST_S: Final = 0.2
LONGEST_REST_S: Final = 5.0

_log = structlog.get_logger(__name__)


class RedisChannel:
    """It implements :class:`nagaya.cache.channel.Channel`. A line that went dead without a word is noticed within
    ``PING_S + ANSWER_S`` seconds. Databases of one server have channels of their own."""

    def __init__(self, line: RedisLine, name: str) -> None:
        self._line = line
        # A server has one set of channels for all its databases.
        self._name = f"nagaya:{line.database}:{name}"

    async def publish(self, notice: bytes) -> None:
        await self._line.ask("PUBLISH", self._name, notice)

    async def listen(self, heard: Callable[[bytes], None], joined: Callable[[], None]) -> None:
        rest_s = REST_S
        is_deaf = False

        def began() -> None:
            nonlocal rest_s, is_deaf
            rest_s, is_deaf = REST_S, False
            joined()

        while True:
            line = self._line.listener()
            try:
                await self._follow(line, heard, began)
            except (RedisError, OSError, TimeoutError) as lost:
                if not is_deaf:
                    is_deaf = True
                    _log.warning("notices are not heard", action="redis.deaf", kind=type(lost).__name__)
            finally:
                await line.aclose()  # type: ignore[no-untyped-call]  # redis-py leaves it without types
            # Not all servers at the same moment.
            await asyncio.sleep(rest_s * random.uniform(0.5, 1.0))  # noqa: S311  # no secret depends on it
            rest_s = min(rest_s * 2, LONGEST_REST_S)

    async def _follow(self, line: PubSub, heard: Callable[[bytes], None], began: Callable[[], None]) -> None:
        await within(ANSWER_S, line.subscribe(self._name))
        # The answer to a PING comes after that to SUBSCRIBE: from then on everything is heard.
        await self._ping(line, heard)
        began()
        while True:
            message = await line.get_message(timeout=PING_S)
            if message is None:
                await self._ping(line, heard)
            elif message["type"] == "message":
                heard(message["data"])

    async def _ping(self, line: PubSub, heard: Callable[[bytes], None]) -> None:
        async with asyncio.timeout(ANSWER_S):
            await line.ping()
            while True:
                message = await line.get_message(timeout=ANSWER_S)
                if message is not None and message["type"] == "message":
                    heard(message["data"])
                if message is not None and message["type"] == "pong":
                    return
