"""The fenced blocks of a Markdown page, as the documentation's tests run them.

``python``      executed; all blocks of a page share their names, and may ``await`` at the top level
``console``     lines after ``$`` are typed into one shell; the lines below each are what it must say
``text``        directly after a ``python`` block: what that block must print
``… file=NAME`` any language: not executed but written to that file, as the reader is told to

``…`` in an expected line stands for anything, alone on a line for any lines. ``(exit status N)`` as the last line is
the status a command must end with. A block below ``<!-- not run: REASON -->`` is left alone. A page
that says ``<!-- begins with the tenant NAME -->`` is read by somebody whose data folder has that tenant.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=ticks)\s*$", re.M | re.S)
_BEGINS = re.compile(r"<!-- begins with the tenant ([a-z0-9-]+) -->")
_NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*$")
# How far apart a table's columns stand depends on what else is in it.
_GAP = re.compile(r"(?<=\S) {2,}(?=\S)")
_STATUS = re.compile(r"\(exit status (\d+)\)")


class Block(NamedTuple):
    """A fenced block: its language, its text, the file it is to be written to, and the line it begins at."""

    language: str
    body: str
    file: str | None
    line: int
    is_run: bool


class Command(NamedTuple):
    """Something to type, what it must say (None: whatever it likes) and the status it must end with."""

    typed: str
    said: str | None
    status: int


def tenants(text: str) -> list[str]:
    """The tenants that a page takes for granted."""
    return _BEGINS.findall(text)


def blocks(text: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        words = match["info"].split()
        file = next((word.removeprefix("file=") for word in words if word.startswith("file=")), None)
        is_run = not _NOT_RUN.search(text[: match.start()].rstrip())
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(words[0] if words else "", match["body"], file, line, is_run))
    return found


def commands(body: str) -> list[Command]:
    """The commands of a ``console`` block."""
    found: list[tuple[list[str], list[str]]] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif found and not found[-1][1] and found[-1][0][-1].endswith("\\"):
            found[-1][0].append(line)
        elif found:
            found[-1][1].append(line)
    return [_command("\n".join(typed), said) for typed, said in found]


def _command(typed: str, said: list[str]) -> Command:
    status = 0
    if said and (match := _STATUS.fullmatch(said[-1].strip())):
        status = int(match[1])
        said = said[:-1]
    return Command(typed, "\n".join(said) if said else None, status)


def says(expected: str, actual: str) -> bool:
    """Whether ``actual`` is what a page promised."""
    wanted, actual = (_GAP.sub("  ", text).strip("\n") for text in (expected, actual))
    pattern = "".join(
        r"(?:.*\n)*?"
        if line.strip() == "…"
        else r"[^\n]*?".join(map(re.escape, line.rstrip().split("…"))) + r"[ \t]*\n"
        for line in wanted.split("\n")
    )
    return re.fullmatch(pattern, actual + "\n") is not None
