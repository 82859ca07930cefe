"""Room names: what may become the name of a folder, and therefore can never lead out of it."""

from __future__ import annotations

import re
from typing import Final

from nagaya.errors import TenantIdInvalid

_ROOM: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]|_[a-z0-9][a-z0-9-]{0,61}")
RULE: Final = "3-63 characters, lower-case letters, digits and inner hyphens ('_' first for the platform's own rooms)"
RULE_JA: Final = "3〜63 文字の小文字英字・数字・途中のハイフンのみ（プラットフォーム自身の部屋は先頭が '_'）"


def check_room(room: str) -> str:
    """``room`` itself, or ``TenantIdInvalid``: a name that passes holds no dot, slash, colon or upper-case letter."""
    if _ROOM.fullmatch(room) is None:
        raise TenantIdInvalid(value=room[:80], rule=RULE, rule_ja=RULE_JA)
    return room
