"""What a PostgreSQL store needs around it in a test."""

from __future__ import annotations

from nagaya.adapters import Surroundings
from nagaya.kernel.clock import SystemClock
from nagaya.kernel.egress import EgressPolicy
from nagaya.settings import Settings
from nagaya.stores.postgres_shared import set_up_sql
from parts.postgres import APP, Postgres


def surroundings(
    room: str = "acme",
    *,
    secret: bytes | None = None,
    allowed: tuple[str, ...] = ("127.0.0.1", "localhost"),
    regions: tuple[str, ...] = (),
    deadline_s: float = 10.0,
) -> Surroundings:
    async def secret_of(name: str) -> bytes | None:
        return secret if name == "postgresql-connection" else None

    settings = Settings(store_deadline_s=deadline_s)
    return Surroundings(settings, SystemClock(), EgressPolicy(allowed), room, regions, secret_of)


async def set_up_shared(postgres: Postgres, database: str, role: str = APP) -> None:
    """The shared table, made by the server's superuser for a role."""
    connection = await postgres.connect(database)
    try:
        await connection.execute(set_up_sql(role))
    finally:
        await connection.close()
