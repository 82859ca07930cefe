"""The registry's tables and how an older registry becomes a current one.

Only types and statements that SQLite and PostgreSQL share. A new registry is made from the tables here and marked as
current; an older one is migrated in two phases (see :mod:`nagaya.tenancy.migrations`). Only then is the migration
library imported, for a start must not take long.

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
    # A workspace: the tenant it lies in, and its name there.
    Column("parent", _ID),
    Column("workspace", String(63)),
    Column("restore_days", Integer, nullable=False, server_default="7"),
    Column("retention_days", Integer),
)
workspace_members = Table(
    "workspace_members",
    metadata,
    Column("workspace_id", _ID, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
    Column("user", String(500), primary_key=True, index=True),
    Column("role", String(20), nullable=False),
    Column("since_us", BigInteger, nullable=False),
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


migration = Table(
    "nagaya_migration",
    metadata,
    Column("version_num", String(32), primary_key=True),
)

VERSION: Final = 2
"""The release of the schema that this program is for. ``registry.version`` is the oldest release that may still run:
only a post phase raises it, so between the phases of one release the release before it runs too."""

REVISIONS: Final = ("0001_pre", "0001_post", "0002_pre", "0002_post")
"""The migrations in their order. Append; never change one that was released."""


def prepare(connection: Connection, place: str, create: bool, phase: str | None = None) -> None:
    """Bring an older registry, or with ``create`` an empty database, to what this program needs, inside the caller's
    transaction.

    Without a ``phase``: a file is brought up to date whole; a server's database only by its pre phase, for other
    servers may still run the release before. Raises ``RegistryNewer`` for one that this program is too old for,
    ``RegistryDamaged`` for a database that holds something else. A current one is left untouched, so this may be
    repeated and may race with another process.
    """
    found = _found(connection, place)
    if found is None:
        if not create:
            raise RegistryDamaged(place=place)
        if phase is None:
            metadata.create_all(connection)
            connection.execute(insert(registry).values(only=1, version=VERSION, serial=0))
            connection.execute(insert(migration).values(version_num=REVISIONS[-1]))
            return
    version, revision = found or (0, "")
    if version > VERSION:
        raise RegistryNewer(found=version, known=VERSION)
    last_pre = max(index for index, name in enumerate(REVISIONS) if name.endswith("_pre"))
    target = last_pre if (phase or _first_phase(connection)) == "pre" else len(REVISIONS) - 1
    # A revision that is not known here is a later release's pre phase, which this one runs with.
    if revision and (revision not in REVISIONS or REVISIONS.index(revision) >= target):
        return
    from nagaya.tenancy.migration import upgrade

    upgrade(connection, REVISIONS[target])


def _first_phase(connection: Connection) -> str:
    return "post" if connection.dialect.name == "sqlite" else "pre"


def _found(connection: Connection, place: str) -> tuple[int, str] | None:
    """The oldest release that may run, and the last migration; None where there is no registry yet."""
    names = set(inspect(connection).get_table_names())
    # A file is the registry's own; a server's database may hold other things beside it.
    if not (names if connection.dialect.name == "sqlite" else names & set(metadata.tables)):
        return None
    if registry.name not in names:
        raise RegistryDamaged(place=place)
    version: int | None = connection.execute(select(registry.c.version)).scalar_one_or_none()
    if version is None or version < 1:
        raise RegistryDamaged(place=place)
    if migration.name not in names:
        # As the first release was made before its migrations were counted.
        migration.create(connection)
        connection.execute(insert(migration).values(version_num="0001_post"))
    revision: str | None = connection.execute(select(migration.c.version_num)).scalar_one_or_none()
    if revision is None:
        raise RegistryDamaged(place=place)
    return version, revision


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
