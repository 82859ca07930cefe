"""Workspaces inside tenants, and their members; and how long a tenant keeps deleted and unused conversations."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, MetaData, String, Table

revision = "0002_pre"
down_revision = "0001_post"

metadata = MetaData()
_ID = String(63).with_variant(String(63, collation="C"), "postgresql")

# Named for the foreign key alone; it is there already.
tenants = Table("tenants", metadata, Column("id", _ID, primary_key=True))
workspace_members = Table(
    "workspace_members",
    metadata,
    Column("workspace_id", _ID, ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
    Column("user", String(500), primary_key=True, index=True),
    Column("role", String(20), nullable=False),
    Column("since_us", BigInteger, nullable=False),
)


def upgrade() -> None:
    op.add_column("tenants", Column("parent", _ID))
    op.add_column("tenants", Column("workspace", String(63)))
    # The release before leaves both out when it writes a tenant, and looks at neither.
    op.add_column("tenants", Column("restore_days", Integer, nullable=False, server_default="7"))
    op.add_column("tenants", Column("retention_days", Integer))
    workspace_members.create(op.get_bind())
