"""What office documents have in common: parts in an archive, and relationships from one part to others."""

from __future__ import annotations

import posixpath
from typing import NamedTuple

from nagaya.extraction.archive import Archive
from nagaya.extraction.markup import listen


class Relationship(NamedTuple):
    """``kind`` is the last word of the relationship's type, such as ``slide``; ``target`` an entry of the archive."""

    id: str
    kind: str
    target: str


class _Relationships:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._found: list[Relationship] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "Relationship" and attributes.get("TargetMode") != "External":
            target = attributes.get("Target", "")
            place = target.lstrip("/") if target.startswith("/") else posixpath.join(self._folder, target)
            kind = attributes.get("Type", "").rpartition("/")[2]
            self._found.append(Relationship(attributes.get("Id", ""), kind, posixpath.normpath(place)))

    def end(self, name: str) -> None: ...

    def text(self, text: str) -> None: ...

    def take(self) -> list[Relationship]:
        found, self._found = self._found, []
        return found


def relationships(archive: Archive, part: str) -> list[Relationship]:
    """Where a part leads inside its archive, in the order of the file; none where it leads nowhere."""
    folder, name = posixpath.split(part)
    place = f"{folder}/_rels/{name}.rels"
    if place not in archive.names:
        return []
    return list(listen(archive.pieces(place), _Relationships(folder)))
