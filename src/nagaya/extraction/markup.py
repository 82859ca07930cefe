"""The XML inside office documents, read as events: no tree is built, no document type or entity is let in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar
from xml.parsers import expat

from nagaya.extraction.limits import Refused

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


def small_number(text: str, most: int) -> int | None:
    """A number that an attribute gives, at most ``most``; None where it is none, or has more digits than one needs."""
    return min(int(text), most) if text.isascii() and text.isdecimal() and len(text) < 10 else None


class Listener(Protocol[T_co]):
    """What makes something of the events. Names are ``local`` for elements and attributes, without their namespace."""

    def start(self, name: str, attributes: dict[str, str]) -> None: ...
    def end(self, name: str) -> None: ...
    def text(self, text: str) -> None: ...
    def take(self) -> Iterable[T_co]:
        """What is complete, once."""
        ...


class _Events(Generic[T]):
    def __init__(self, listener: Listener[T]) -> None:
        self._listener = listener
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.buffer_size = 64 * 1024
        self.parser.StartDoctypeDeclHandler = _refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = listener.text

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        for key in [key for key in attributes if " " in key]:
            # Of two with one name the one with a namespace counts: `r:id` leads on, `id` is only a number.
            attributes[key.rpartition(" ")[2]] = attributes.pop(key)
        self._listener.start(name.rpartition(" ")[2], attributes)

    def _end(self, name: str) -> None:
        self._listener.end(name.rpartition(" ")[2])


def listen(pieces: Iterable[bytes], listener: Listener[T]) -> Iterator[T]:
    """What a listener makes of an XML text that comes in pieces, as soon as it has it.

    Raises ``Refused`` (``corrupt``) where the text is not well formed, or has a document type: office documents have
    none, and whoever puts one in wants its entities expanded.
    """
    parser = _Events(listener).parser
    try:
        for piece in pieces:
            parser.Parse(piece, False)
            yield from listener.take()
        parser.Parse(b"", True)
    except expat.ExpatError as broken:
        raise Refused("corrupt", f"XML that is not well formed: {expat.ErrorString(broken.code)}") from broken
    yield from listener.take()


def _refuse(*_: object) -> None:
    raise Refused("corrupt", "XML with a document type")
