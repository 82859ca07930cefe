"""The registry's tables and how an older registry becomes a current one.

Only types and statements that SQLite and PostgreSQL share. The few migrations are a list of functions run in order
inside one transaction: a migration library would be imported on every start, and a start must not take long.

``registry.serial`` counts changes. A writer raises it in its own transaction, whose row lock makes serials visible
in the order they were given; a sequence or an autoincrement column would not, and a reader that polls would then
pass over a change that committed late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    case,
    insert,
    inspect,
    select,
    update,
)

from nagaya.errors import RegistryDamaged, RegistryNewer

metadata = MetaData()

# Byte order, so that a page of tenants has the order the program has, whatever the database's locale.
_ID = String(63).with_variant(String(63, collation="C"), "postgresql")

registry = Table(
    "nagaya_registry",
    metadata,
    Column("only", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("serial", BigInteger, nullable=False),
)
tenants = Table(
    "tenants",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("skeleton", String(200), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("state", String(20), nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("tier", String(20), nullable=False),
    Column("isolation", String(40), nullable=False),
    Column("store", Text, nullable=False),
    Column("models", Text, nullable=False),
    Column("key_service", Text, nullable=False),
    Column("blobs", Text),
    Column("regions", Text, nullable=False),
    Column("hosts", Text, nullable=False),
    Column("expires_at_us", BigInteger),
    Column("mfa_required", Boolean, nullable=False),
    Column("sso_required", Boolean, nullable=False),
    Column("max_token_lifetime_s", Integer, nullable=False),
    Column("requests_per_minute", Integer),
    Column("tokens_valid_from_us", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("onboarding_sha256", LargeBinary),
)
tenant_hosts = Table(
    "tenant_hosts",
    metadata,
    Column("host", String(253), primary_key=True),
    Column("tenant_id", _ID, ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False, index=True),
)
issuers = Table(
    "issuers",
    metadata,
    Column("issuer", String(500), primary_key=True),
    Column("tenant_id", _ID, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True, index=True),
    Column("provider", String(20), nullable=False),
    Column("audiences", Text, nullable=False),
    Column("jwks_url", Text, nullable=False),
    Column("algorithms", Text, nullable=False),
    Column("directory", Text),
    Column("accept_id_tokens", Boolean, nullable=False),
    Column("required_scope", Text),
    Column("default_role", String(20), nullable=False),
    Column("role_claims", Text, nullable=False),
)
issuer_audiences = Table(
    "issuer_audiences",
    metadata,
    Column("issuer", String(500), primary_key=True),
    Column("audience", String(500), primary_key=True),
    Column("tenant_id", _ID, nullable=False),
    ForeignKeyConstraint(
        ["issuer", "tenant_id"], ["issuers.issuer", "issuers.tenant_id"], ondelete="CASCADE", name="audience_of_issuer"
    ),
)
Index("issuer_audiences_of_tenant", issuer_audiences.c.issuer, issuer_audiences.c.tenant_id)
api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(200), primary_key=True),
    Column("tenant_id", _ID, ForeignKey("tenants.id", ondelete="CASCADE"), index=True),
    Column("name", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("role", String(20), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
    Column("revoked_at_us", BigInteger),
)
key_versions = Table(
    "key_versions",
    metadata,
    # A room is a tenant or the platform itself, which is no tenant: hence no foreign key.
    Column("room", String(200), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("state", String(20), nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("uses", BigInteger, nullable=False),
)
revocations = Table(
    "revocations",
    metadata,
    Column("tenant_id", String(200), primary_key=True),
    Column("kind", String(20), primary_key=True),
    Column("subject", String(500), primary_key=True),
    Column("not_before_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False, index=True),
)
changes = Table(
    "changes",
    metadata,
    Column("serial", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("tenant_id", String(200)),
    Column("kind", String(20), nullable=False),
    Column("subject", String(500), nullable=False),
    Column("at_us", BigInteger, nullable=False, index=True),
)
usage = Table(
    "usage",
    metadata,
    Column("tenant_id", String(200), primary_key=True),
    Column("month", String(7), primary_key=True),
    Column("metric", String(40), primary_key=True),
    Column("value", BigInteger, nullable=False),
)


def _create(connection: Connection) -> None:
    metadata.create_all(connection)
    connection.execute(insert(registry).values(only=1, version=0, serial=0))


MIGRATIONS: Final = (_create,)
"""Each makes its version (1, 2, …) out of the one before. Append; never change one that was released."""

VERSION: Final = len(MIGRATIONS)


def migrate(connection: Connection, place: str, create: bool) -> None:
    """Bring an older registry, or with ``create`` an empty database, to ``VERSION``, inside the caller's transaction.

    Raises ``RegistryNewer`` for one that a newer program wrote, ``RegistryDamaged`` for a database that holds
    something else. A current one is left untouched, so this may be repeated and may race with another process.
    """
    found = _found_version(connection, place)
    if found == 0 and not create:
        raise RegistryDamaged(place=place)
    if found > VERSION:
        raise RegistryNewer(found=found, known=VERSION)
    for step in MIGRATIONS[found:]:
        step(connection)
    if found < VERSION:
        connection.execute(update(registry).values(version=VERSION))


def _found_version(connection: Connection, place: str) -> int:
    names = set(inspect(connection).get_table_names())
    if not names:
        return 0
    if registry.name not in names:
        raise RegistryDamaged(place=place)
    found: int | None = connection.execute(select(registry.c.version)).scalar_one_or_none()
    if found is None or found < 1:
        raise RegistryDamaged(place=place)
    return found


def upsert(
    dialect: str, table: Table, rows: Sequence[dict[str, Any]], *, add: str = "", highest: Sequence[str] = ()
) -> Any:
    """Insert rows; where one with that primary key exists, add to the column ``add`` and raise the columns
    ``highest`` to the greater value. Atomic, also among processes."""
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as conflict_insert
    else:
        from sqlalchemy.dialects.sqlite import insert as conflict_insert  # type: ignore[assignment]  # same methods
    statement = conflict_insert(table).values(list(rows))
    sets: dict[str, Any] = {}
    if add:
        sets[add] = table.c[add] + statement.excluded[add]
    for name in highest:
        new = statement.excluded[name]
        sets[name] = case((new > table.c[name], new), else_=table.c[name])
    return statement.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=sets)
