"""What a server and its reading process say to each other, over two pipes: messages with their length before them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import msgspec

from nagaya.extraction.blocks import Block
from nagaya.extraction.chunks import Chunk, Strategy
from nagaya.extraction.formats import Kind
from nagaya.extraction.limits import Limits, Reason

LENGTH: Final = struct.Struct(">I")
OUT_OF_MEMORY: Final = 3
"""The code that a process ends with where a document left it no memory to say so."""
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""Of a message or of a piece of a document. A longer one is a mistake, not a message."""


class Job(msgspec.Struct, frozen=True, tag="job"):
    """A document is coming, in pieces; an empty piece is its end. With a ``strategy``, chunks are wanted of it."""

    name: str
    media_type: str | None
    limits: Limits
    strategy: Strategy | None


class Began(msgspec.Struct, frozen=True, tag="began"):
    """What the document is."""

    kind: Kind


class Blocks(msgspec.Struct, frozen=True, tag="blocks"):
    blocks: list[Block]


class Chunks(msgspec.Struct, frozen=True, tag="chunks"):
    chunks: list[Chunk]


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The document's end; the process is free for another. ``peak_bytes`` is the most memory it ever took."""

    peak_bytes: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The document cannot be read; the process is free for another. ``peak_bytes`` as in ``Done``."""

    reason: Reason
    about: str
    peak_bytes: int


Answer = Began | Blocks | Chunks | Done | Failed

encode: Final = msgspec.msgpack.Encoder().encode
decode_job: Final = msgspec.msgpack.Decoder(Job).decode
decode_answer: Final[Callable[[bytes], Answer]] = msgspec.msgpack.Decoder(Answer).decode


def framed(message: bytes) -> bytes:
    """A message as it is sent."""
    return LENGTH.pack(len(message)) + message
