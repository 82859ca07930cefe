"""PDF: pages, and in them headings and paragraphs by the size and place of their lines."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from nagaya.extraction.blocks import Block
from nagaya.extraction.layout import Line, page_blocks
from nagaya.extraction.limits import Limits, Refused

_END_BYTES: Final = 4096
_SAMPLED_PAGES: Final = 12
"""Pages, spread over the document, whose lines tell how large ordinary text is."""
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_CONTROLS: Final = re.compile(r"[\x00-\x01\x03-\x08\x0b-\x1f\x7f]")


def read_pdf(document: bytes, limits: Limits) -> Iterator[Block]:
    """The blocks of a PDF, page by page; a paragraph does not go over a page's end.

    Raises ``Refused``: ``encrypted`` where a password is needed to read, ``corrupt`` where the end of the file or a
    page is missing, ``too_many_parts``.
    """
    import pypdfium2  # type: ignore[import-untyped]  # the package ships no types
    from pypdfium2 import raw

    if b"%%EOF" not in document[-_END_BYTES:]:
        # The library would make a shorter document of a half that arrived, and nobody would know.
        raise Refused("corrupt", "the end of the file is missing")
    try:
        pdf = pypdfium2.PdfDocument(document)
    except pypdfium2.PdfiumError as failed:
        if failed.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise Refused("encrypted", "a PDF under a password") from failed
        raise Refused("corrupt", f"a PDF that does not open ({failed.err_code})") from failed
    with pdf:
        count = len(pdf)
        if count > limits.pages:
            raise Refused("too_many_parts", f"{count} pages")
        usual = _usual_size(pdf, count)
        for number in range(count):
            yield from page_blocks(_lines(pdf, number), usual, number + 1)


def _usual_size(pdf: Any, count: int) -> float:
    sizes: Counter[float] = Counter()
    step = max(1, count // _SAMPLED_PAGES)
    for number in range(0, count, step):
        for line in _lines(pdf, number):
            sizes[round(line.size, 1)] += len(line.text)
    return max(sizes, key=lambda size: (sizes[size], -size), default=0.0)


def _lines(pdf: Any, number: int) -> list[Line]:
    import pypdfium2

    try:
        page = pdf[number]
        words = page.get_textpage()
        text = words.get_text_range()
    except pypdfium2.PdfiumError as failed:
        raise Refused("corrupt", f"page {number + 1} does not open") from failed
    found = []
    start = 0
    for part in _LINE_END.split(text):
        clean = _CONTROLS.sub("", part).strip()
        if clean:
            first = start + len(part) - len(part.lstrip())
            found.append(_placed(clean, words, first, start + len(part.rstrip()) - 1))
        start += len(part) + (2 if text.startswith("\r\n", start + len(part)) else 1)
    words.close()
    page.close()
    return found


def _placed(text: str, words: Any, first: int, last: int) -> Line:
    left, lower, _, top = _box(words, first)
    _, bottom, right, _ = _box(words, last)
    return Line(text, left, right, bottom, top, top - lower)


def _box(words: Any, index: int) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of a character, by its place in the text."""
    from pypdfium2 import raw

    rectangle = raw.FS_RECTF()
    character = raw.FPDFText_GetCharIndexFromTextIndex(words, index)
    if character < 0 or not raw.FPDFText_GetLooseCharBox(words, character, ctypes.byref(rectangle)):
        return 0.0, 0.0, 0.0, 0.0
    return rectangle.left, rectangle.bottom, rectangle.right, rectangle.top
