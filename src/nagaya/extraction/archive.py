"""ZIP archives of strangers: what is unpacked is counted while it is unpacked, whatever the headers say."""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from typing import Final

from nagaya.extraction.limits import Limits, Refused

PIECE_BYTES: Final = 64 * 1024
_RATIO_FROM_BYTES: Final = 1024 * 1024
"""What unpacks to less than this may be as well packed as it likes."""
_BROKEN: Final = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError, IndexError)


class Archive:
    """The entries of a ZIP file in memory. Nothing is unpacked before it is asked for, an archive inside never is.

    Raises ``Refused``: ``corrupt``, ``encrypted``, ``too_many_parts``, ``too_large``.
    """

    def __init__(self, document: bytes, limits: Limits) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(document))
        except _BROKEN as broken:
            raise Refused("corrupt", f"no archive: {type(broken).__name__}") from broken
        entries = self._zip.infolist()
        if len(entries) > limits.archive_entries:
            raise Refused("too_many_parts", f"{len(entries)} files in an archive")
        # Of two entries with one name readers differ over which counts; the first is as good as the last.
        self._entries = {posixpath.normpath(entry.filename): entry for entry in entries}
        self._left = limits.unpacked_bytes
        self._ratio = limits.unpacked_ratio

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._entries)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The unpacked bytes of an entry, piece by piece."""
        entry = self._entries.get(name)
        if entry is None:
            raise Refused("corrupt", f"a part is missing: {posixpath.basename(name)}")
        if entry.flag_bits & 0x1:
            raise Refused("encrypted", "an archive under a password")
        unpacked = 0
        try:
            with self._zip.open(entry) as part:
                while piece := part.read(PIECE_BYTES):
                    unpacked += len(piece)
                    self._left -= len(piece)
                    if self._left < 0:
                        raise Refused("too_large", "unpacks to too much")
                    if unpacked > max(_RATIO_FROM_BYTES, entry.compress_size * self._ratio):
                        raise Refused("too_large", "unpacks to too many times its size")
                    yield piece
        except _BROKEN as broken:
            raise Refused("corrupt", f"does not unpack: {type(broken).__name__}") from broken
