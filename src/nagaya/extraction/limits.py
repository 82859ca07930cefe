"""How much a document may hold and its reading may take, and how a reader says that it goes no further."""

from __future__ import annotations

from typing import Literal

import msgspec

Reason = Literal[
    "unsupported", "picture", "corrupt", "encrypted", "no_text", "too_large", "too_many_parts", "timed_out"
]
"""Why a document cannot be read.

``unsupported``: not a kind that is read. ``picture``: one, and nothing here recognises its text. ``corrupt``: damaged,
or not what it says. ``encrypted``: protected by a password. ``no_text``: read to its end, and there was no text.
``too_large``: in bytes, unpacked bytes, characters, pixels or memory. ``too_many_parts``: pages, blocks or files
inside. ``timed_out``: it took too long.
"""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a document may cost. Each is checked while reading, against what was really read."""

    document_bytes: int = 128 * 1024 * 1024
    unpacked_bytes: int = 512 * 1024 * 1024
    """All parts of an archive together."""
    unpacked_ratio: int = 200
    """Unpacked bytes per packed byte of one part. The XML of an honest office document stays well under 100."""
    archive_entries: int = 10_000
    pages: int = 20_000
    blocks: int = 1_000_000
    characters: int = 100_000_000
    seconds: float = 30.0
    seconds_per_megabyte: float = 5.0
    """On top, for each megabyte of the document. Only the reader's own work counts: waiting for the source's bytes, or
    for whoever takes the blocks, does not."""

    pixels: int = 50_000_000
    """Of one picture, as its header says."""
    pictures: int = 50
    """Pages of one TIFF."""
    picture_seconds: float = 150.0
    """On top, where the document is a picture: recognising a page takes some seconds of a processor."""

    def allowed_s(self, size_bytes: int, *, is_picture: bool = False) -> float:
        """The seconds that a document of ``size_bytes`` may take."""
        more = self.picture_seconds if is_picture else 0.0
        return self.seconds + self.seconds_per_megabyte * size_bytes / 1_000_000 + more


class Refused(Exception):
    """A reader's verdict; ``about`` says more to whoever looks into the log, and never quotes the document."""

    def __init__(self, reason: Reason, about: str) -> None:
        super().__init__(reason, about)
        self.reason: Reason = reason
        self.about = about
