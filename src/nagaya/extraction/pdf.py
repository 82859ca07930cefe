"""PDF: pages, and in them headings and paragraphs by the size and place of their lines."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from nagaya.extraction.blocks import Block
from nagaya.extraction.limits import Limits, Refused
from nagaya.extraction.lines import joined

_END_BYTES: Final = 4096
_SAMPLED_PAGES: Final = 12
"""Pages, spread over the document, whose lines tell how large ordinary text is."""
_HEADING_SIZE: Final = 1.15
_HEADING_LEVELS: Final = ((1.7, 1), (1.35, 2))
_HEADING_CHARACTERS: Final = 200
_SAME_SIZE: Final = 0.12
_PARAGRAPH_GAP: Final = 0.75
"""Space between two lines, in heights of a line, from which they are not one paragraph."""
_INDENT: Final = 0.8
_SHORT_LINE: Final = 2.0
"""How many characters' width a line falls short that ends its paragraph with its sentence."""
_TITLE_WIDTH: Final = 0.6
"""The part of a usual line's width under which a line ends its paragraph whatever it ends with: ``第1条（目的）``."""
_SENTENCE_END: Final = re.compile(r"[。！？.!?:：][」』）)\]\"'”’]*\Z")
_ITEM: Final = re.compile(r"(?:[•‣⁃◦▪●○■□・※]|[-–—*]\s|\(?\d{1,3}[.)]\s|[（(]\d{1,3}[）)]|[①-⑳]|[a-z]\)\s)")
_CLAUSE: Final = re.compile(
    r"第[0-9０-９一二三四五六七八九十百]{1,6}[編章節款条]|(?:Article|Section|Chapter)\s[0-9IVX]{1,6}\b"
)
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_CONTROLS: Final = re.compile(r"[\x00-\x01\x03-\x08\x0b-\x1f\x7f]")
_HYPHENS: Final = str.maketrans("", "", "\x02\ufffe\u00ad")


class _Line(NamedTuple):
    """``size`` is the height of its characters; all in points from the page's lower left corner. Two lines that share
    a divided word come as one, from the upper one's ``top`` to the lower one's ``bottom``."""

    text: str
    left: float
    right: float
    bottom: float
    top: float
    size: float

    @property
    def width(self) -> float:
        return self.right - self.left


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
            yield from _blocks(_lines(pdf, number), usual, number + 1)


def _usual_size(pdf: Any, count: int) -> float:
    sizes: Counter[float] = Counter()
    step = max(1, count // _SAMPLED_PAGES)
    for number in range(0, count, step):
        for line in _lines(pdf, number):
            sizes[round(line.size, 1)] += len(line.text)
    return max(sizes, key=lambda size: (sizes[size], -size), default=0.0)


def _lines(pdf: Any, number: int) -> list[_Line]:
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


def _placed(text: str, words: Any, first: int, last: int) -> _Line:
    left, lower, _, top = _box(words, first)
    _, bottom, right, _ = _box(words, last)
    return _Line(text, left, right, bottom, top, top - lower)


def _box(words: Any, index: int) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of a character, by its place in the text."""
    from pypdfium2 import raw

    rectangle = raw.FS_RECTF()
    character = raw.FPDFText_GetCharIndexFromTextIndex(words, index)
    if character < 0 or not raw.FPDFText_GetLooseCharBox(words, character, ctypes.byref(rectangle)):
        return 0.0, 0.0, 0.0, 0.0
    return rectangle.left, rectangle.bottom, rectangle.right, rectangle.top


def _blocks(lines: list[_Line], usual: float, page: int) -> Iterator[Block]:
    width = _usual_width(lines)
    held: list[_Line] = []
    for line in lines:
        if held and _begins(held[-1], line, width):
            yield from _block(held, usual, page)
            held = []
        held.append(line)
    yield from _block(held, usual, page)


def _usual_width(lines: list[_Line]) -> float:
    """The width of the lines, or of wider ones, that hold half of a page's characters: where it has columns, theirs."""
    left = sum(len(line.text) for line in lines) / 2
    for line in sorted(lines, key=lambda line: line.width, reverse=True):
        left -= len(line.text)
        if left <= 0:
            return line.width
    return 0.0


def _begins(before: _Line, line: _Line, width: float) -> bool:
    """Whether a line begins a paragraph of its own after the one before. ``width`` is that of usual lines."""
    size = max(before.size, line.size, 0.1)
    if abs(before.size - line.size) > _SAME_SIZE * size:
        return True
    if line.bottom >= before.top or before.bottom - line.top > _PARAGRAPH_GAP * size:
        return True  # the next column, or a gap
    if _ITEM.match(line.text) or _CLAUSE.match(line.text):
        return True
    if before.width < width * _TITLE_WIDTH:
        return True
    if _SENTENCE_END.search(before.text) is None:
        return False
    return line.left - before.left > _INDENT * size or before.width < width - _SHORT_LINE * size


def _block(lines: list[_Line], usual: float, page: int) -> Iterator[Block]:
    text = ""
    for line in lines:
        text = joined(text, line.text)
    text = text.translate(_HYPHENS).strip()
    if not text:
        return
    ratio = lines[0].size / usual if usual else 1.0
    if ratio >= _HEADING_SIZE and len(text) <= _HEADING_CHARACTERS:
        level = next((level for least, level in _HEADING_LEVELS if ratio >= least), 3)
        yield Block("heading", text, level, page)
    elif _ITEM.match(text):
        yield Block("list_item", text, 1, page)
    else:
        yield Block("paragraph", text, 0, page)
