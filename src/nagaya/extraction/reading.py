"""From a document's bytes to its blocks: which reader reads it, and how far it may go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from nagaya.extraction import formats
from nagaya.extraction.archive import Archive
from nagaya.extraction.blocks import Block
from nagaya.extraction.charsets import decode
from nagaya.extraction.formats import Kind
from nagaya.extraction.limits import Limits, Refused

_BLOCK_CHARACTERS: Final = 16 * 1024
"""A longer block is given in several: a line of 50 MB is then no message of 50 MB."""


def read(document: bytes, *, name: str, media_type: str | None, limits: Limits) -> tuple[Kind, Iterator[Block]]:
    """What a document is, and its blocks as they are read.

    Raises ``Refused``, at once where not even a first block can be had, else while reading.
    """
    if len(document) > limits.document_bytes:
        raise Refused("too_large", f"more than {limits.document_bytes} bytes")
    kind, unchecked = _read(document, name, media_type, limits)
    blocks = _within(unchecked, limits)
    first = next(blocks)
    return kind, chain([first], blocks)


def _read(document: bytes, name: str, media_type: str | None, limits: Limits) -> tuple[Kind, Iterable[Block]]:
    match formats.kind_of_binary(document):
        case Kind.PDF:
            from nagaya.extraction.pdf import read_pdf

            return Kind.PDF, read_pdf(document, limits)
        case Kind.PICTURE:
            from nagaya.extraction.pictures import read_picture

            return Kind.PICTURE, read_picture(document, limits)
    if formats.is_archive(document):
        return _read_package(Archive(document, limits), limits)
    named = formats.named_kind(name, media_type)
    text = decode(document, media_type=media_type, markup=named in (Kind.HTML, None))
    kind = formats.kind_of_text(text, name, media_type)
    return kind, _read_text(text, kind)


def _read_package(archive: Archive, limits: Limits) -> tuple[Kind, Iterable[Block]]:
    match formats.kind_of_package(archive.names):
        case Kind.DOCX:
            from nagaya.extraction.docx import read_docx

            return Kind.DOCX, read_docx(archive)
        case Kind.PPTX:
            from nagaya.extraction.pptx import read_pptx

            return Kind.PPTX, read_pptx(archive, limits)
        case _:
            from nagaya.extraction.xlsx import read_xlsx

            return Kind.XLSX, read_xlsx(archive, limits)


def _read_text(text: str, kind: Kind) -> Iterable[Block]:
    from nagaya.extraction import html, markdown, plain

    match kind:
        case Kind.HTML:
            return html.read_html(text)
        case Kind.MARKDOWN:
            return markdown.read_markdown(text)
        case Kind.CSV:
            return plain.read_csv(text)
        case Kind.JSON:
            return plain.read_json(text)
        case _:
            return plain.read_text(text)


def _within(blocks: Iterable[Block], limits: Limits) -> Iterator[Block]:
    count = characters = 0
    for whole in blocks:
        for block in _divided(whole):
            count += 1
            characters += len(block.text)
            if count > limits.blocks:
                raise Refused("too_many_parts", f"more than {limits.blocks} blocks")
            if characters > limits.characters:
                raise Refused("too_large", f"more than {limits.characters} characters")
            yield block
    if not count:
        raise Refused("no_text", "read to its end")


def _divided(block: Block) -> Iterator[Block]:
    text = _sound(block.text)
    start = 0
    while start < len(text):
        end = start + _BLOCK_CHARACTERS
        if end < len(text):
            end = max(text.rfind(mark, start + _BLOCK_CHARACTERS // 2, end) for mark in "\n 。") + 1 or end
        if part := text[start:end].strip():
            yield Block(block.kind, part, block.level, block.page)
        start = end


def _sound(text: str) -> str:
    """A text that every store and encoder takes: without NULs, and without halves of characters."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
