"""Nothing to take away: no release was before the first."""

from __future__ import annotations

revision = "0001_post"
down_revision = "0001_pre"


def upgrade() -> None:
    """The registry is as the first release needs it already."""
