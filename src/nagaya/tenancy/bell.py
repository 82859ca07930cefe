"""Hearing at once that another server changed the registry, where the database can tell (PostgreSQL's NOTIFY)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

CHANNEL: Final = "nagaya_changes"


class Bell:
    """One connection of its own that listens. ``ring(serial)`` is called for every change that was committed.

    It promises nothing: a line that went dead without a word is not noticed here. Whoever relies on it polls now and
    then too, and hangs it up again when it turns out to be deaf.
    """

    def __init__(self, make_engine: Callable[[], AsyncEngine], ring: Callable[[int], None]) -> None:
        self._make_engine = make_engine
        self._ring = ring
        self._engine: AsyncEngine | None = None
        self._connection: AsyncConnection | None = None
        self._hangs = False

    @property
    def hangs(self) -> bool:
        """Whether it should be heard, as far as is known."""
        return self._hangs

    async def hang(self) -> None:
        """Listen on a new connection. Raises what connecting raises; then it does not hang. What was changed before
        this returns is not heard: poll once afterwards."""
        await self.take_down()
        self._engine = self._make_engine()
        try:
            self._connection = await self._engine.connect()
            driver: Any = (await self._connection.get_raw_connection()).driver_connection
            driver.add_termination_listener(self._fell)
            await driver.add_listener(CHANNEL, self._heard)
        except BaseException:
            await self.take_down()
            raise
        self._hangs = True

    async def take_down(self) -> None:
        """Stop listening. May be repeated."""
        self._hangs = False
        connection, self._connection = self._connection, None
        engine, self._engine = self._engine, None
        if connection is not None:
            await connection.invalidate()
            await connection.close()
        if engine is not None:
            await engine.dispose()

    def _heard(self, _driver: object, _pid: int, _channel: str, payload: str) -> None:
        self._ring(int(payload) if payload.isdecimal() else 0)

    def _fell(self, _driver: object) -> None:
        self._hangs = False
        self._ring(0)
