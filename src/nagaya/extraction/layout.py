"""Lines as they lie on a page, made into headings and paragraphs by their size and place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from nagaya.extraction.blocks import Block
from nagaya.extraction.lines import joined

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
_HYPHENS: Final = str.maketrans("", "", "\x02\ufffe\u00ad")


class Line(NamedTuple):
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


def page_blocks(lines: list[Line], usual: float, page: int | None) -> Iterator[Block]:
    """The blocks of one page's lines; ``usual`` is the height of ordinary text in the document."""
    width = _usual_width(lines)
    held: list[Line] = []
    for line in lines:
        if held and _begins(held[-1], line, width):
            yield from _block(held, usual, page)
            held = []
        held.append(line)
    yield from _block(held, usual, page)


def _usual_width(lines: list[Line]) -> float:
    """The width of the lines, or of wider ones, that hold half of a page's characters: where it has columns, theirs."""
    left = sum(len(line.text) for line in lines) / 2
    for line in sorted(lines, key=lambda line: line.width, reverse=True):
        left -= len(line.text)
        if left <= 0:
            return line.width
    return 0.0


def _begins(before: Line, line: Line, width: float) -> bool:
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


def _block(lines: list[Line], usual: float, page: int | None) -> Iterator[Block]:
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
