"""One table for many rooms, told apart by row-level security that holds even for the table's owner.

The operator sets it up once, as the owner: ``python -m nagaya.stores.postgres_shared ROLE | psql …``. Servers connect
as ROLE, which owns nothing, may not pass over the policies, and reaches rows only through the functions here: each
says whose room it is for (``nagaya.room``, for this transaction alone) and then does one verb. A statement that says
no room sees no row.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import asyncpg

from nagaya.errors import StoreDamaged, StoreNewer, StoreRoleUnsafe, TenantExists
from nagaya.stores.postgres_layouts import Leasing, Statements

FORMAT: Final = 1
_DESTROY_AT_ONCE: Final = 5_000

# ruff: noqa: S608 - the statements are put together from the constants here; every value is an argument
_NOBODYS_ROOM: Final = "RAISE EXCEPTION USING ERRCODE = '42P01', MESSAGE = 'there is no such room'"
# An assignment is worked out in place; PERFORM would run a query for it.
_ENTER: Final = "entered := pg_catalog.set_config('nagaya.room', $1, true);"
_IS_OPEN: Final = "EXISTS (SELECT FROM nagaya.rooms r WHERE r.room = $1 AND NOT r.leaving)"
_DONE_OR_NOBODYS: Final = f"""IF FOUND THEN RETURN true; END IF;
    IF NOT {_IS_OPEN} THEN {_NOBODYS_ROOM}; END IF;
    RETURN false;"""
_PAGE: Final = "SELECT r.sort, r.revision, r.body FROM nagaya.records r WHERE r.room = $1 AND r.partition = $2"
_MINE: Final = "room = NULLIF(pg_catalog.current_setting('nagaya.room', true), '')"
_COLUMNS: Final = "sort bytea, revision bigint, body bytea"
_ROWS: Final = f"TABLE ({_COLUMNS})"

_FUNCTIONS: Final[dict[str, tuple[str, str]]] = {
    "state(text)": ("text", f"""{_ENTER}
    RETURN (SELECT CASE WHEN r.leaving THEN 'leaving' ELSE 'open' END
        FROM nagaya.rooms r WHERE r.room = $1);"""),
    "make(text)": ("boolean", f"""{_ENTER}
    INSERT INTO nagaya.rooms (room) VALUES ($1) ON CONFLICT DO NOTHING;
    RETURN FOUND;"""),
    "leave(text)": ("void", f"""{_ENTER}
    UPDATE nagaya.rooms r SET leaving = true WHERE r.room = $1;"""),
    "clear(text, integer)": ("bigint", f"""{_ENTER}
    WITH chosen AS MATERIALIZED (
        SELECT r.partition, r.sort FROM nagaya.records r WHERE r.room = $1 ORDER BY 1, 2 LIMIT $2
    ), gone AS (
        DELETE FROM nagaya.records r USING chosen s
        WHERE r.room = $1 AND r.partition = s.partition AND r.sort = s.sort RETURNING 1
    ) SELECT count(*) INTO cleared FROM gone;
    RETURN cleared;"""),
    "forget(text)": ("void", f"""{_ENTER}
    DELETE FROM nagaya.rooms r WHERE r.room = $1 AND r.leaving;"""),
    "size(text)": ("bigint", f"""{_ENTER}
    RETURN (SELECT coalesce(sum(32 + octet_length(r.room) + octet_length(r.partition) + octet_length(r.sort)
        + octet_length(r.body)), 0) FROM nagaya.records r WHERE r.room = $1);"""),
    "get(text, bytea, bytea)": (_ROWS, f"{_ENTER}\n    RETURN QUERY {_PAGE} AND r.sort = $3;"),
    "up(text, bytea, bytea, integer)": (
        _ROWS, f"{_ENTER}\n    RETURN QUERY {_PAGE} AND r.sort > $3 ORDER BY r.sort LIMIT $4;"),
    "up_to(text, bytea, bytea, bytea, integer)": (
        _ROWS, f"{_ENTER}\n    RETURN QUERY {_PAGE} AND r.sort > $3 AND r.sort < $4 ORDER BY r.sort LIMIT $5;"),
    "down(text, bytea, bytea, integer)": (
        _ROWS, f"{_ENTER}\n    RETURN QUERY {_PAGE} AND r.sort > $3 ORDER BY r.sort DESC LIMIT $4;"),
    "down_from(text, bytea, bytea, bytea, integer)": (
        _ROWS, f"{_ENTER}\n    RETURN QUERY {_PAGE} AND r.sort > $3 AND r.sort < $4 ORDER BY r.sort DESC LIMIT $5;"),
    "scan(text, bytea, bytea, integer)": (f"TABLE (partition bytea, {_COLUMNS})", f"""{_ENTER}
    RETURN QUERY SELECT r.partition, r.sort, r.revision, r.body FROM nagaya.records r
        WHERE r.room = $1 AND (r.partition, r.sort) > ($2, $3) ORDER BY r.partition, r.sort LIMIT $4;"""),
    "put_new(text, bytea, bytea, bytea)": ("boolean", f"""{_ENTER}
    INSERT INTO nagaya.records (room, partition, sort, revision, body)
        SELECT $1, $2, $3, 1, $4 FROM nagaya.rooms r WHERE r.room = $1 AND NOT r.leaving
        ON CONFLICT DO NOTHING;
    {_DONE_OR_NOBODYS}"""),
    "put_over(text, bytea, bytea, bytea, bigint)": ("boolean", f"""{_ENTER}
    UPDATE nagaya.records r SET revision = r.revision + 1, body = $4
        WHERE r.room = $1 AND r.partition = $2 AND r.sort = $3 AND r.revision = $5 AND {_IS_OPEN};
    {_DONE_OR_NOBODYS}"""),
    "remove(text, bytea, bytea, bigint)": ("boolean", f"""{_ENTER}
    DELETE FROM nagaya.records r
        WHERE r.room = $1 AND r.partition = $2 AND r.sort = $3 AND r.revision = $4 AND {_IS_OPEN};
    {_DONE_OR_NOBODYS}"""),
    "batch(text, bytea, bytea[], bytea[], bigint[])": ("boolean", """FOR n IN 1 .. cardinality($3) LOOP
        IF $4[n] IS NULL THEN done := nagaya.remove($1, $2, $3[n], $5[n]);
        ELSIF $5[n] = 0 THEN done := nagaya.put_new($1, $2, $3[n], $4[n]);
        ELSE done := nagaya.put_over($1, $2, $3[n], $4[n], $5[n]);
        END IF;
        IF NOT done THEN RAISE EXCEPTION USING ERRCODE = '22012', MESSAGE = 'a condition does not hold'; END IF;
    END LOOP;
    RETURN true;"""),
}  # fmt: skip

_POLICY: Final = r"^\(?room = NULLIF\(current_setting\('nagaya\.room'::text, true\), ''::text\)\)?$"
_PROBE: Final = """
SELECT problem FROM (
    SELECT 'it is, or may become, the superuser or BYPASSRLS role ' || r.rolname FROM pg_roles r
        WHERE (r.rolsuper OR r.rolbypassrls) AND pg_has_role(session_user, r.oid, 'MEMBER')
    UNION ALL SELECT 'it owns, or may become the owner of, ' || c.relname FROM pg_class c
        WHERE c.oid = ANY ($1::oid[]) AND pg_has_role(session_user, c.relowner, 'MEMBER')
    UNION ALL SELECT 'row-level security is not forced on ' || c.relname FROM pg_class c
        WHERE c.oid = ANY ($1::oid[]) AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
    UNION ALL SELECT 'it may TRUNCATE ' || c.relname FROM pg_class c
        WHERE c.oid = ANY ($1::oid[]) AND has_table_privilege(session_user, c.oid, 'TRUNCATE')
    UNION ALL SELECT 'it may change schema nagaya'
        WHERE has_schema_privilege(session_user, 'nagaya', 'CREATE')
    UNION ALL SELECT 'the policies of ' || c.relname || ' are not those of the set-up' FROM pg_class c
        WHERE c.oid = ANY ($1::oid[]) AND (
            SELECT coalesce(array_agg(p.polname::text || p.polcmd::text || p.polpermissive::text
                || (pg_get_expr(p.polqual, p.polrelid) = pg_get_expr(p.polwithcheck, p.polrelid))::text
                || (pg_get_expr(p.polqual, p.polrelid) ~ $2)::text), '{}')
            FROM pg_policy p WHERE p.polrelid = c.oid) <> ARRAY['own_room*truetruetrue']
    UNION ALL SELECT 'function ' || p.proname || ' runs with its owner''s rights' FROM pg_proc p
        WHERE p.pronamespace = 'nagaya'::regnamespace AND p.prosecdef
) found (problem)
"""


def set_up_sql(role: str) -> str:
    """What the owner runs once, in one transaction, so that ``role`` can serve rooms. May be repeated for another
    role. The role must exist; it is granted what it needs and nothing else."""
    quoted = '"' + role.replace('"', '""') + '"'
    rooms, records = "nagaya.rooms", "nagaya.records"
    parts = [
        "BEGIN",
        "CREATE SCHEMA IF NOT EXISTS nagaya",
        f"CREATE TABLE IF NOT EXISTS {rooms} "
        '(room text COLLATE "C" PRIMARY KEY, leaving boolean NOT NULL DEFAULT false)',
        f"CREATE TABLE IF NOT EXISTS {records} (revision bigint NOT NULL, "
        'room text COLLATE "C" NOT NULL, partition bytea NOT NULL, sort bytea NOT NULL, body bytea NOT NULL, '
        "PRIMARY KEY (room, partition, sort))",
        f"ALTER TABLE {records} ALTER partition SET STORAGE MAIN, ALTER sort SET STORAGE MAIN, "
        "ALTER body SET STORAGE EXTERNAL",
    ]
    for table in (rooms, records):
        parts += [
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
            f"DROP POLICY IF EXISTS own_room ON {table}",
            f"CREATE POLICY own_room ON {table} USING ({_MINE}) WITH CHECK ({_MINE})",
            f"REVOKE ALL ON {table} FROM PUBLIC",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {quoted}",
        ]
    for signature, (returns, body) in _FUNCTIONS.items():
        variables = "DECLARE entered text; done boolean; cleared bigint;\n"
        parts += [
            f"CREATE OR REPLACE FUNCTION nagaya.{signature} RETURNS {returns} LANGUAGE plpgsql AS "
            f"$nagaya$\n#variable_conflict use_column\n{variables}BEGIN\n    {body}\nEND $nagaya$",
            f"REVOKE ALL ON FUNCTION nagaya.{signature} FROM PUBLIC",
            f"GRANT EXECUTE ON FUNCTION nagaya.{signature} TO {quoted}",
        ]
    parts += [
        f"GRANT USAGE ON SCHEMA nagaya TO {quoted}",
        f"COMMENT ON SCHEMA nagaya IS 'Nagaya shared store, format {FORMAT}'",
        "COMMIT",
    ]
    return ";\n".join(parts) + ";\n"


class SharedLayout:
    """One table for all rooms."""

    needs_create = "what `python -m nagaya.stores.postgres_shared ROLE` grants"
    needs_use = needs_create

    def __init__(self, database: str, lease: Leasing) -> None:
        self._database = database
        self._lease = lease

    async def check(self) -> None:
        """Raises ``StoreDamaged`` where nothing was set up, ``StoreRoleUnsafe`` where the policies would not bind."""
        async with self._lease(self._database) as connection:
            described = await connection.fetchval("SELECT obj_description(to_regnamespace('nagaya'), 'pg_namespace')")
            ours, _, version = (described or "").rpartition(", format ")
            if ours != "Nagaya shared store" or not version.isdecimal():
                raise StoreDamaged(place="nagaya")
            if int(version) > FORMAT:
                raise StoreNewer(place="nagaya", found=int(version), known=FORMAT)
            tables = [
                await connection.fetchval("SELECT to_regclass($1)::oid", name)
                for name in ("nagaya.rooms", "nagaya.records")
            ]
            problems = [row[0] for row in await connection.fetch(_PROBE, tables, _POLICY)]
            if problems:
                raise StoreRoleUnsafe(problem="; ".join(problems))
            if await connection.fetchval(
                "SELECT EXISTS (SELECT FROM nagaya.records) OR EXISTS (SELECT FROM nagaya.rooms)"
            ):
                raise StoreRoleUnsafe(problem="rows are seen without saying whose")

    def database(self, room: str) -> str:
        return self._database

    def statements(self, room: str) -> Statements:
        # What gives one value is not asked for as a table, which the server would first put together.
        do, rows = "SELECT nagaya.", "SELECT * FROM nagaya."
        return Statements(
            lead=(room,),
            get=f"{rows}get($1, $2, $3)",
            put_new=f"{do}put_new($1, $2, $3, $4)",
            put_new_many=(
                "SELECT place, sort FROM unnest($2::bytea[], $3::bytea[], $4::bytea[]) AS u (place, sort, body) "
                "WHERE nagaya.put_new($1, place, sort, body)"
            ),
            put_over=f"{do}put_over($1, $2, $3, $4, $5)",
            remove=f"{do}remove($1, $2, $3, $4)",
            batch=f"{do}batch($1, $2, $3, $4, $5)",
            up=f"{rows}up($1, $2, $3, $4)",
            up_to=f"{rows}up_to($1, $2, $3, $4, $5)",
            down=f"{rows}down($1, $2, $3, $4)",
            down_from=f"{rows}down_from($1, $2, $3, $4, $5)",
            scan=f"{rows}scan($1, $2, $3, $4)",
        )

    async def exists(self, room: str) -> bool:
        async with self._lease(self._database) as connection:
            return await self._state(connection, room) == "open"

    async def create(self, room: str) -> None:
        async with self._lease(self._database) as connection:
            if not await connection.fetchval("SELECT nagaya.make($1)", room):
                raise TenantExists(value=room)

    async def destroy(self, room: str) -> None:
        """Shut the room, empty it some rows at a time, forget it: broken off anywhere, a repeat goes on."""
        async with self._lease(self._database) as connection:
            await connection.fetchval("SELECT nagaya.leave($1)", room)
            while await connection.fetchval("SELECT nagaya.clear($1, $2)", room, _DESTROY_AT_ONCE):
                pass
            await connection.fetchval("SELECT nagaya.forget($1)", room)

    async def size_bytes(self, room: str) -> int:
        async with self._lease(self._database) as connection:
            return int(await connection.fetchval("SELECT nagaya.size($1)", room))

    async def _state(self, connection: asyncpg.Connection[Any], room: str) -> str | None:
        found: str | None = await connection.fetchval("SELECT nagaya.state($1)", room)
        return found


if __name__ == "__main__":
    sys.stdout.write(set_up_sql(sys.argv[1]))
