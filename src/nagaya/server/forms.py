"""A form with one file, read as it arrives: the file's bytes pass through, only the other fields are kept."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from nagaya.errors import BlobTooLarge, FormExpected, InvalidForm, InvalidValue, MissingParameter

FORM_BYTES: Final = 1024 * 1024
"""What a form may have besides its file, in bytes."""
MAX_FIELDS: Final = 16
MAX_FIELD_BYTES: Final = 8 * 1024
MAX_HEADERS: Final = 8
MAX_HEADER_BYTES: Final = 64 * 1024


class Form:
    """One ``multipart/form-data`` body whose part ``file`` may be of any size.

    :meth:`begin` reads to the file's first byte; :meth:`content` gives its bytes and then reads what follows. Each
    other field is told to ``on_field`` once it is whole, before or after the file. ``pieces`` is the body.

    Raises ``FormExpected``, ``InvalidForm``, ``InvalidValue``, ``MissingParameter``, ``BlobTooLarge`` for a file of
    more than ``limit_bytes``, and whatever ``pieces`` and ``on_field`` raise. About one piece is held at a time.
    """

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        content_type: str | None,
        *,
        limit_bytes: int,
        on_field: Callable[[str, str], None],
    ) -> None:
        self.filename = ""
        self.media_type = "application/octet-stream"
        self._pieces = pieces
        self._limit_bytes = limit_bytes
        self._on_field = on_field
        self._parser = _parser(content_type, self)
        self._seen: set[str] = set()
        self._headers: dict[bytes, bytes] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._name = ""
        self._value = bytearray()
        self._arrived: deque[bytes] = deque()
        self._size = 0
        self._in_file = False
        self._ended = False

    async def begin(self) -> None:
        """Read up to the file. May be repeated."""
        while "file" not in self._seen:
            if self._ended:
                raise MissingParameter(param="file", at="file")
            await self._more()

    async def content(self) -> AsyncGenerator[bytes, None]:
        """The file's bytes, to be read once, to the end: the fields after it are read behind the last of them."""
        await self.begin()
        while True:
            while self._arrived:
                yield self._arrived.popleft()
            if self._ended:
                return
            await self._more()

    async def _more(self) -> None:
        piece = await anext(self._pieces, None)
        if piece is None:
            raise InvalidForm(detail="it ends before its closing boundary")
        try:
            self._parser.write(piece)
        except FormParserError:
            raise InvalidForm(detail="its boundaries or headers are not as they should be") from None

    # --- what the parser tells ---

    def part_begun(self) -> None:
        self._headers, self._name, self._value = {}, "", bytearray()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def header_ended(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name, self._header_value = bytearray(), bytearray()

    def headers_ended(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not name:
            raise InvalidForm(detail="a part has no name")
        if name in self._seen:
            raise InvalidValue(param=name[:64], at=name[:64], detail="given more than once")
        if len(self._seen) == MAX_FIELDS:
            raise InvalidForm(detail=f"it has more than {MAX_FIELDS} parts")
        self._seen.add(name)
        self._name, self._in_file = name, name == "file"
        if self._in_file:
            # Clients write a quotation mark as the HTML standard says.
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace").replace("%22", '"')
            self.media_type = _media_type(self._headers.get(b"content-type"))

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._size += end - start
            if self._size > self._limit_bytes:
                raise BlobTooLarge(limit_bytes=self._limit_bytes)
            self._arrived.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            at = self._name[:64]
            raise InvalidValue(param=at, at=at, detail=f"at most {MAX_FIELD_BYTES} bytes")

    def part_ended(self) -> None:
        if self._in_file:
            self._in_file = False
            return
        try:
            value = self._value.decode()
        except UnicodeDecodeError:
            raise InvalidValue(param=self._name[:64], at=self._name[:64], detail="it is not UTF-8") from None
        self._on_field(self._name, value)

    def ended(self) -> None:
        self._ended = True


def _parser(content_type: str | None, form: Form) -> MultipartParser:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise FormExpected
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": form.part_begun,
                "on_header_field": form.header_name,
                "on_header_value": form.header_value,
                "on_header_end": form.header_ended,
                "on_headers_finished": form.headers_ended,
                "on_part_data": form.part_data,
                "on_part_end": form.part_ended,
                "on_end": form.ended,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )
    except FormParserError:
        raise InvalidForm(detail="its boundary is too long") from None


def _media_type(given: bytes | None) -> str:
    text = (given or b"").decode("ascii", "replace").strip()
    return text if text.isascii() and text.isprintable() and 0 < len(text) <= 255 else "application/octet-stream"
