"""Page cursors: where the next page starts, in a form that nobody can read, alter or carry to another list."""

from __future__ import annotations

import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

from nagaya.errors import KeyDestroyed, NotFound, SealBroken
from nagaya.keys.derivation import length_prefixed
from nagaya.records.envelope import NONCE_BYTES
from nagaya.records.sealer import Sealer

MAX_CURSOR: Final = 2048
"""Characters of a cursor; none of ours is half as long."""


class Cursors:
    """Seals places into cursors bound to the tenant and the query, under a key that opens no record."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    async def seal_cursor(self, query: tuple[str, ...], place: bytes) -> str:
        """A cursor to ``place`` (a sort key) in the list that ``query`` describes: route, parent, filters, order,
        user. Two cursors to one place differ. Raises what fetching the tenant's key raises."""
        cipher = await self._sealer.cursor_cipher(None)
        sealed = cipher.seal(length_prefixed(*query), 0, place, os.urandom(NONCE_BYTES))
        return urlsafe_b64encode(sealed).rstrip(b"=").decode("ascii")

    async def open_cursor(self, query: tuple[str, ...], text: str) -> bytes:
        """The place. Raises ``NotFound("page")`` for anything that is not a cursor of this tenant to this query."""
        try:
            sealed = _decode(text)
            cipher = await self._sealer.cursor_cipher(sealed)
            return cipher.open(length_prefixed(*query), 0, sealed)
        except (SealBroken, KeyDestroyed, ValueError):
            # One answer for all of them, so that nobody learns which part was right.
            raise NotFound("page") from None


def _decode(text: str) -> bytes:
    if len(text) > MAX_CURSOR:
        raise ValueError
    raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    if urlsafe_b64encode(raw).rstrip(b"=").decode("ascii") != text:
        # Base64 has several spellings of some bytes; only ours is a cursor.
        raise ValueError
    return raw
