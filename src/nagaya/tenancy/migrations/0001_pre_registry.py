"""The registry of the first release."""

from __future__ import annotations

from alembic import op
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    insert,
)

revision = "0001_pre"
down_revision = None

metadata = MetaData()
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


def upgrade() -> None:
    metadata.create_all(op.get_bind())
    op.get_bind().execute(insert(registry).values(only=1, version=1, serial=0))
