"""Web pages: what a person reads on them, in its order. No tree is built, so that no nesting is too deep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from nagaya.extraction.blocks import Block, BlockKind, table_row
from nagaya.extraction.lines import unwrapped

_FEED_CHARACTERS: Final = 64 * 1024
_NOT_READ: Final = frozenset(
    {"script", "style", "template", "noscript", "svg", "iframe", "object", "rt", "rp", "datalist"}
)
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_LISTS: Final = frozenset({"ul", "ol", "menu"})
_BLOCKS: Final = """
    address article aside blockquote body center dd details dialog div dl dt fieldset figcaption figure footer form
    header hgroup hr html legend main nav option p pre search section summary table tbody td tfoot th thead title tr
"""
_BORDERS: Final = frozenset(_BLOCKS.split()) | _LISTS | _HEADINGS.keys() | {"li", "caption"}  # fmt: skip
"""Elements that a line ends before and after."""
_DEEPEST: Final = 9


def read_html(text: str) -> Iterator[Block]:
    """The blocks of a page. Its title is a heading, unless the first heading says the same."""
    from lxml import etree  # type: ignore[import-untyped]  # the package ships no types

    page = _Page()
    # Not Python's own parser: of a megabyte of `<a ` without end it makes the work of hours.
    parser = etree.HTMLParser(target=page, encoding="utf-8", huge_tree=True, no_network=True)
    try:
        for start in range(0, len(text), _FEED_CHARACTERS):
            parser.feed(text[start : start + _FEED_CHARACTERS].encode("utf-8", "replace"))
            yield from page.take()
        parser.close()
    except etree.XMLSyntaxError:
        pass  # an empty page; what was read before stays read
    page.finish()
    yield from page.take()


class _Page:
    """What the parser tells its events to."""

    def __init__(self) -> None:
        self._done: list[Block] = []
        self._texts: list[str] = []
        self._not_read: list[str] = []
        self._title: str | None = None
        self._in_title = False
        self._heading = 0
        self._lists = 0
        self._in_item = False
        self._preformatted = 0
        self._tables = 0
        self._cells: list[str] = []
        self._rows = 0

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag in _NOT_READ:
            self._not_read.append(tag)
        if self._not_read:
            return
        if tag in _BORDERS:
            self._border()
        if tag == "br":
            self._texts.append("\n")
        elif tag == "img":
            self._texts.append(f" {attributes.get('alt', '')} ")
        elif tag == "title":
            self._in_title = True
        elif tag in _HEADINGS:
            self._heading = _HEADINGS[tag]
        elif tag in _LISTS:
            self._lists += 1
            self._in_item = False
        elif tag == "li":
            self._in_item = True
        elif tag == "pre":
            self._preformatted += 1
        elif tag == "table":
            self._tables += 1
            if self._tables == 1:
                self._rows = 0
        elif tag == "tr" and self._tables == 1:
            self._row()
        elif tag in ("td", "th") and self._tables == 1:
            self._cells.append("")

    def end(self, tag: str) -> None:
        if self._not_read:
            if tag in self._not_read:
                del self._not_read[self._not_read.index(tag) :]
            return
        if tag in _BORDERS:
            self._border()
        if tag == "title":
            self._in_title = False
        elif tag in _HEADINGS:
            self._heading = 0
        elif tag in _LISTS:
            self._lists = max(0, self._lists - 1)
            self._in_item = self._lists > 0
        elif tag == "li":
            self._in_item = False
        elif tag == "pre":
            self._preformatted = max(0, self._preformatted - 1)
        elif tag == "tr" and self._tables == 1:
            self._row()
        elif tag == "table":
            if self._tables == 1:
                self._row()
            self._tables = max(0, self._tables - 1)

    def data(self, data: str) -> None:
        if not self._not_read:
            self._texts.append(data)

    def close(self) -> None: ...

    def finish(self) -> None:
        self._border()
        self._row()
        if self._title is not None:
            self._tell(Block("paragraph", ""))

    def take(self) -> list[Block]:
        done, self._done = self._done, []
        return done

    def _border(self) -> None:
        """What was read since the last border is a block, or goes to the cell it is in."""
        if not self._texts:
            return
        raw = "".join(self._texts)
        self._texts = []
        if self._preformatted and not self._tables:
            if raw.strip():
                self._tell(Block("code", raw.strip("\n").rstrip()))
            return
        text = unwrapped(raw)
        if not text:
            return
        if self._in_title:
            self._title = self._title or text
        elif self._tables:
            if self._cells:
                self._cells[-1] = f"{self._cells[-1]} {text}".strip()
            else:
                self._tell(Block("paragraph", text))
        else:
            self._tell(self._block(text))

    def _block(self, text: str) -> Block:
        if self._heading:
            return Block("heading", text, self._heading)
        kind: BlockKind = "list_item" if self._in_item else "paragraph"
        return Block(kind, text, min(max(1, self._lists), _DEEPEST) if self._in_item else 0)

    def _row(self) -> None:
        cells, self._cells = self._cells, []
        if (row := table_row(cells, first=self._rows == 0)) is not None:
            self._rows += 1
            self._tell(row)

    def _tell(self, block: Block) -> None:
        title, self._title = self._title, None
        if title is not None and not (block.kind == "heading" and block.text == title):
            self._done.append(Block("heading", title, 1))
        if block.text:
            self._done.append(block)
