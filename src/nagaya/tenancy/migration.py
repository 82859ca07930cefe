"""Runs the registry's migrations. Imported only when there is one to run: the library takes a while to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, select

from nagaya.tenancy import schema
from nagaya.tenancy.database import RegistryDatabase

FOLDER: Final = Path(__file__).parent / "migrations"
LIMIT_S: Final = 3600.0
"""How long one phase may take where an operator runs it."""

folders = [FOLDER]


def upgrade(connection: Connection, target: str) -> None:
    """Run every migration up to ``target`` inside the caller's transaction: all of them, or none."""
    scripts = ScriptDirectory(str(FOLDER), version_locations=[str(folder) for folder in folders])

    def steps(revision: Any, _context: object) -> Any:
        return scripts._upgrade_revs(target, revision)

    with EnvironmentContext(Config(), scripts, fn=steps, destination_rev=target) as environment:
        environment.configure(connection=connection, version_table=schema.migration.name)
        environment.run_migrations()


async def migrate(url: str | URL, phase: Literal["pre", "post"]) -> str:
    """Bring a registry through a phase of this program's migrations, or make it; gives the last migration done.

    ``pre`` may run while servers of the release before are running, and must before one of this release starts on
    more than it can wait for. ``post`` may run once all servers are of this release. Both may be repeated. Raises as
    :meth:`RegistryDatabase.open` does.
    """
    database = RegistryDatabase(url, deadline_s=LIMIT_S)
    await database.open(phase=phase)

    def last(connection: Connection) -> str:
        return str((connection.execute(select(schema.migration.c.version_num))).scalar_one())

    try:
        return await database.finish(database.transaction(last))
    finally:
        await database.close()
