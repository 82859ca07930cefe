"""What kind of document some bytes are. Bytes win over names: a name is asked only where bytes cannot tell."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from nagaya.extraction.limits import Refused

HEAD_BYTES: Final = 4096
"""How much of a document's beginning is looked at."""


class Kind(StrEnum):
    """A kind of document that is read."""

    PDF = "pdf"
    DOCX = "docx"
    PPTX = "pptx"
    XLSX = "xlsx"
    HTML = "html"
    MARKDOWN = "markdown"
    CSV = "csv"
    JSON = "json"
    TEXT = "text"
    PICTURE = "picture"


MEDIA_TYPES: Final = {
    Kind.PDF: "application/pdf",
    Kind.DOCX: "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    Kind.PPTX: "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    Kind.XLSX: "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    Kind.HTML: "text/html",
    Kind.MARKDOWN: "text/markdown",
    Kind.CSV: "text/csv",
    Kind.JSON: "application/json",
    Kind.TEXT: "text/plain",
}

_BY_MEDIA_TYPE: Final = {media: kind for kind, media in MEDIA_TYPES.items() if kind is not Kind.TEXT} | {
    "application/xhtml+xml": Kind.HTML,
    "text/x-markdown": Kind.MARKDOWN,
    "text/tab-separated-values": Kind.CSV,
    "application/x-ndjson": Kind.JSON,
    "application/jsonl": Kind.JSON,
    "application/vnd.ms-word.document.macroenabled.12": Kind.DOCX,
    "application/vnd.ms-powerpoint.presentation.macroenabled.12": Kind.PPTX,
    "application/vnd.ms-excel.sheet.macroenabled.12": Kind.XLSX,
}

_BY_ENDING: Final = {
    "pdf": Kind.PDF,
    "docx": Kind.DOCX, "docm": Kind.DOCX, "dotx": Kind.DOCX,
    "pptx": Kind.PPTX, "pptm": Kind.PPTX, "ppsx": Kind.PPTX,
    "xlsx": Kind.XLSX, "xlsm": Kind.XLSX, "xltx": Kind.XLSX,
    "html": Kind.HTML, "htm": Kind.HTML, "xhtml": Kind.HTML,
    "md": Kind.MARKDOWN, "markdown": Kind.MARKDOWN,
    "csv": Kind.CSV, "tsv": Kind.CSV,
    "json": Kind.JSON, "jsonl": Kind.JSON, "ndjson": Kind.JSON,
}  # fmt: skip

_BINARY: Final = frozenset({Kind.PDF, Kind.DOCX, Kind.PPTX, Kind.XLSX})

_PICTURES: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
_OTHERS: Final = (
    (b"\x1f\x8b", "an archive"),
    (b"7z\xbc\xaf\x27\x1c", "an archive"),
    (b"Rar!", "an archive"),
    (b"BZh", "an archive"),
    (b"\xfd7zXZ\0", "an archive"),
    (b"\x28\xb5\x2f\xfd", "an archive"),
    (b"\x7fELF", "a program"),
    (b"{\\rtf", "an RTF document"),
    (b"%!PS", "a PostScript document"),
)
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED_PACKAGE: Final = "EncryptedPackage".encode("utf-16-le")
_HTML: Final = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S
)


def is_archive(document: bytes) -> bool:
    """Whether a document is a ZIP file, as the office formats are; what it holds tells which."""
    return document.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def is_picture(head: bytes) -> bool:
    """Whether what begins so is a PNG, JPEG, GIF, TIFF or WebP picture."""
    return head.startswith(_PICTURES) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")


def named_kind(name: str, media_type: str | None) -> Kind | None:
    """What the name says a document is, else what its media type says; None where neither says anything useful."""
    found = _BY_ENDING.get(name.rpartition(".")[2].lower()) if "." in name else None
    if found is not None or media_type is None:
        return found
    return _BY_MEDIA_TYPE.get(media_type.partition(";")[0].strip().lower())


def kind_of_binary(document: bytes) -> Kind | None:
    """PDF, a picture, or None for what may be text or an archive. Raises ``Refused`` for anything else that can be
    told."""
    head = document[:HEAD_BYTES]
    if b"%PDF-" in head[:1024]:
        return Kind.PDF
    if is_picture(head):
        return Kind.PICTURE
    if head.startswith(_OLE):
        if _ENCRYPTED_PACKAGE in document:
            raise Refused("encrypted", "an office document under a password")
        raise Refused("unsupported", "an office document of before 2007")
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise Refused("unsupported", what)
    if head[4:8] == b"ftyp":
        raise Refused("unsupported", "an image or a film")
    return None


def kind_of_package(entries: frozenset[str] | set[str]) -> Kind:
    """Which office document an archive with these entries is. Raises ``Refused`` for any other archive."""
    if "[Content_Types].xml" in entries:
        for entry, kind in (
            ("word/document.xml", Kind.DOCX),
            ("ppt/presentation.xml", Kind.PPTX),
            ("xl/workbook.xml", Kind.XLSX),
        ):
            if entry in entries:
                return kind
    raise Refused("unsupported", "an archive that is no office document")


def kind_of_text(text: str, name: str, media_type: str | None) -> Kind:
    """What kind of text a text is. Raises ``Refused`` where the name promises something that is not text."""
    named = named_kind(name, media_type)
    if named in _BINARY:
        raise Refused("corrupt", f"named as {named.value}, and is not")
    if named is not None:
        return named
    return Kind.HTML if _HTML.match(text[:HEAD_BYTES]) else Kind.TEXT
