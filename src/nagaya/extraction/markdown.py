"""Markdown: CommonMark with tables, without its marks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from nagaya.extraction.blocks import Block, BlockKind, table_row
from nagaya.extraction.html import read_html
from nagaya.extraction.lines import unwrapped
from nagaya.extraction.plain import read_text

if TYPE_CHECKING:
    from markdown_it.token import Token

_FRONT_MATTER: Final = re.compile(r"---[ \t]*\n(.{0,16384}?)\n---[ \t]*(?:\n|\Z)", re.S)
_AS_TEXT_FROM: Final = 4 * 1024 * 1024
"""Characters from which a file is read as plain text: nobody writes so much by hand, and its tokens would take GBs."""
_LONGEST_PARAGRAPH: Final = 100_000
"""Characters; in a longer one emphasis and links are not looked for, which takes the square of its length."""


def read_markdown(text: str) -> Iterator[Block]:
    """The blocks of a Markdown text; what is before it between two lines of ``---`` is code."""
    if len(text) > _AS_TEXT_FROM:
        yield from read_text(text)
        return
    if (front := _FRONT_MATTER.match(text)) is not None:
        if front[1].strip():
            yield Block("code", front[1].strip())
        text = text[front.end() :]
    yield from _blocks(_tokens(text))


def _tokens(text: str) -> list[Token]:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    if max(map(len, re.split(r"\n[ \t]*\n", text)), default=0) > _LONGEST_PARAGRAPH:
        parser.disable("inline")
    return parser.parse(text)


def _blocks(tokens: list[Token]) -> Iterator[Block]:
    lists = heading = rows = 0
    cells: list[str] | None = None
    for token in tokens:
        match token.type:
            case "bullet_list_open" | "ordered_list_open":
                lists += 1
            case "bullet_list_close" | "ordered_list_close":
                lists -= 1
            case "heading_open":
                heading = int(token.tag[1:])
            case "heading_close":
                heading = 0
            case "table_open":
                rows = 0
            case "tr_open":
                cells = []
            case "tr_close":
                if cells is not None and (row := table_row(cells, first=rows == 0)) is not None:
                    rows += 1
                    yield row
                cells = None
            case "fence" | "code_block":
                if token.content.strip():
                    yield Block("code", token.content.strip("\n").rstrip())
            case "html_block":
                yield from read_html(token.content)
            case "inline":
                said = unwrapped(_said(token))
                if cells is not None:
                    cells.append(said)
                elif said and heading:
                    yield Block("heading", said, heading)
                elif said:
                    kind: BlockKind = "list_item" if lists else "paragraph"
                    yield Block(kind, said, lists)


def _said(token: Token) -> str:
    if not token.children:
        return token.content
    parts = []
    for child in token.children:
        if child.type in ("text", "code_inline", "image", "text_special"):
            parts.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            parts.append("\n")
    return "".join(parts)
