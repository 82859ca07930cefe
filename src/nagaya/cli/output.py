"""How commands speak: one JSON document for programs, tables for people, plain lines where nobody watches."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from nagaya.errors import NagayaError, ServerRefused


class Output:
    """Results go to standard output, messages to standard error."""

    def __init__(self, *, as_json: bool, language: str) -> None:
        self.as_json = as_json
        self.language = language
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                # An argument that is no UTF-8 must come back as an escape, not as a failure to print.
                reconfigure(encoding="utf-8", errors="backslashreplace")

    def pick(self, en: str, ja: str) -> str:
        """The text in the caller's language."""
        return ja if self.language == "ja" else en

    def note(self, en: str, ja: str) -> None:
        """A message to people, beside the result."""
        print(self.pick(en, ja), file=sys.stderr, flush=True)

    def document(self, value: Any) -> None:
        """The one JSON document of a command."""
        print(json.dumps(value, ensure_ascii=False, indent=2), flush=True)

    def fields(self, value: Mapping[str, Any]) -> None:
        """One thing: its document, or its fields under each other."""
        if self.as_json:
            self.document(value)
            return
        self._rows([], [[name, cell(name, content)] for name, content in value.items()])

    def table(self, columns: Sequence[str], items: Sequence[Mapping[str, Any]], *, rest: Mapping[str, Any]) -> None:
        """Many things: a list document, or a table of the named columns."""
        if self.as_json:
            self.document({"object": "list", **rest, "data": list(items)})
            return
        self._rows(list(columns), [[cell(name, item.get(name)) for name in columns] for item in items])

    def problem(self, error: NagayaError) -> None:
        """Say in one line what went wrong; under ``--json`` also as the error document."""
        message = " ".join(error.message(self.language).split())
        if self.as_json:
            shape = {"message": message, "type": error.type, "param": error.param, "code": error.code}
            self.document({"error": error.shape if isinstance(error, ServerRefused) else shape})
        print(f"nagaya: {message}", file=sys.stderr, flush=True)

    def _rows(self, columns: list[str], rows: list[list[str]]) -> None:
        heads = [[column.removesuffix("_us") for column in columns]] if columns else []
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text

            table = Table(show_header=bool(columns), header_style="bold", box=None)
            for at, head in enumerate(heads[0] if heads else ("", "")):
                # Whatever the width, an id must be there whole: people copy it.
                table.add_column(head, overflow="fold", no_wrap=at == 0)
            for row in rows:
                table.add_row(*map(Text, row))
            Console().print(table)
            return
        every = heads + rows
        widths = [max(map(_width, column)) for column in zip(*every, strict=True)] if every else []
        for row in every:
            line = "  ".join(
                text + " " * (width - _width(text)) for text, width in zip(row, widths, strict=True)
            ).rstrip()
            print(line)


def cell(name: str, value: Any) -> str:
    """A value as people read it: times as UTC, lists with commas, nothing as a dash."""
    if value is None or value in ([], (), {}):
        return "-"
    if name.endswith("_us") and isinstance(value, int):
        if value == 0:
            return "-"
        return datetime.fromtimestamp(value / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(cell("", part) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={cell(str(key), part)}" for key, part in value.items())
    return str(value)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
