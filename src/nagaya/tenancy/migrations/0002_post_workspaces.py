"""From here on there may be workspaces, so the first release is shut out: it would let a workspace's key in without
asking whether its tenant is open."""

from __future__ import annotations

from alembic import op

revision = "0002_post"
down_revision = "0002_pre"


def upgrade() -> None:
    op.execute("UPDATE nagaya_registry SET version = 2")
