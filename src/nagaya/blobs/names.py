"""Names of blobs and rooms: what may become part of a path or a key, and therefore can never lead out of its room."""

from __future__ import annotations

import re
from typing import Final

from nagaya.errors import InvalidValue, TenantIdInvalid

MAX_NAME: Final = 512
"""Characters of a whole name. With a room and a prefix it stays under the 1,024 bytes of S3 and Azure."""

MAX_SEGMENT: Final = 120
"""Characters between two slashes: with every capital letter escaped it still fits a file system's 255."""

_SEGMENT: Final = r"[A-Za-z0-9_-](?:[A-Za-z0-9_.-]{0,118}[A-Za-z0-9_-])?"
_NAME: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PART: Final = re.compile(r"[A-Za-z0-9_./-]*")
_ROOM: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]|_[a-z0-9][a-z0-9-]{0,61}")
_RULE: Final = "3-63 characters, lower-case letters, digits and inner hyphens ('_' first for the platform's own rooms)"
_RULE_JA: Final = "3〜63 文字の小文字英字・数字・途中のハイフンのみ（プラットフォーム自身の部屋は先頭が '_'）"


def check_name(name: str) -> str:
    """``name`` itself, or ``InvalidValue``. No segment is empty or begins or ends with a dot."""
    if len(name) > MAX_NAME or _NAME.fullmatch(name) is None:
        raise InvalidValue(at="name", detail=f"1 to {MAX_NAME} of A-Z a-z 0-9 - _ . / in segments of {MAX_SEGMENT}")
    return name


def check_part(part: str, at: str) -> str:
    """``part`` itself, the beginning of a name or a place between names; else ``InvalidValue``."""
    if len(part) > MAX_NAME or _PART.fullmatch(part) is None:
        raise InvalidValue(at=at, detail=f"at most {MAX_NAME} of A-Z a-z 0-9 - _ . /")
    return part


def check_room(room: str) -> str:
    """``room`` itself, or ``TenantIdInvalid``: a name that passes holds no dot, slash, colon or capital letter."""
    if _ROOM.fullmatch(room) is None:
        raise TenantIdInvalid(value=room[:80], rule=_RULE, rule_ja=_RULE_JA)
    return room
