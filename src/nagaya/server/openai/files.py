"""``/v1/files``: uploads as they arrive, downloads as they are opened."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from urllib.parse import quote

from nagaya.context.idempotency import Claim
from nagaya.context.library.files import LONGEST_S, MAX_PAGE, SHORTEST_S, FileDetails, clean_name
from nagaya.errors import BlobTooLarge, InvalidValue, MissingParameter, UnknownParameter
from nagaya.server.calls import Call, Reply, Stream, encode, flag_of, listed, names_a_tenant, number_of, order_of
from nagaya.server.forms import FORM_BYTES, Form
from nagaya.server.openai.conversations import once
from nagaya.tenancy.principal import Entrance

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = frozenset({"purpose", "shared", _ANCHOR, _SECONDS})


async def create(call: Call) -> Reply:
    """Keep a file: a form (`multipart/form-data`) with `file` and `purpose`, of up to 512 MiB."""
    entrance = await call.enter_unread()
    call.query({})
    limit = call.nagaya.settings.file_limit_bytes
    fields = _Fields(call, entrance)
    async with aclosing(call.pieces(limit + FORM_BYTES, BlobTooLarge(limit_bytes=limit))) as pieces:
        form = Form(pieces, call.header(b"content-type"), limit_bytes=limit, on_field=fields.take)
        # What stands before the file is looked at before anything of the tenant's is opened.
        await form.begin()
        filename = clean_name(form.filename)
        async with await call.nagaya.inside(entrance) as context:

            async def work(held: Claim | None) -> bytes:
                async with aclosing(form.content()) as parts:
                    made = await context.files.receive(
                        parts,
                        lambda: fields.details(filename, form.media_type),
                        file_id=held.id("file") if held else None,
                    )
                return encode(made)

            # The boundary differs from one attempt to the next, so a body is known by its file's name and its size.
            return await once(call, context, f"{filename}\n{call.header(b'content-length')}".encode(), work)


class _Fields:
    """What a form says of its file."""

    def __init__(self, call: Call, entrance: Entrance) -> None:
        self._call = call
        self._entrance = entrance
        self._given: dict[str, str] = {}

    def take(self, name: str, value: str) -> None:
        if names_a_tenant(name):
            self._call.confirm(self._entrance, (value,))
        if name not in _FIELDS:
            raise UnknownParameter(name[:64])
        self._given[name] = value

    def details(self, filename: str, media_type: str) -> FileDetails:
        seconds, anchor = self._given.get(_SECONDS), self._given.get(_ANCHOR)
        if anchor not in (None, "created_at"):
            raise InvalidValue(param=_ANCHOR, at=_ANCHOR, detail="expected 'created_at'")
        if seconds is None and anchor is not None:
            raise MissingParameter(param=_SECONDS, at=_SECONDS)
        return FileDetails(
            filename=filename,
            purpose=self._given.get("purpose", ""),
            media_type=media_type,
            shared=flag_of(self._given.get("shared", ""), "shared") is True,
            expires_after_s=None
            if seconds is None
            else number_of(seconds, _SECONDS, lowest=SHORTEST_S, highest=LONGEST_S),
        )


async def listing(call: Call) -> Reply:
    """The caller's files, newest first; `shared`: those others share; `user`: for an administrator."""
    async with await call.admit() as context:
        query = call.query({"after": "", "limit": "1000", "order": "desc", "purpose": "", "user": "", "shared": ""})
        page = await context.files.list(
            purpose=query["purpose"] or None,
            user=query["user"] or None,
            shared=flag_of(query["shared"], "shared") is True,
            after=query["after"] or None,
            limit=number_of(query["limit"], "limit", lowest=1, highest=MAX_PAGE),
            order=order_of(query["order"]),
        )
        return listed(page.data, has_more=page.cursor is not None, next_cursor=page.cursor)


async def retrieve(call: Call) -> Reply:
    """One file, without its bytes."""
    async with await call.admit() as context:
        call.query({})
        return Reply(encode(await context.files.retrieve(call.params[0])))


async def delete(call: Call) -> Reply:
    """Delete a file and what was made of it."""
    async with await call.admit() as context:
        call.query({})
        await context.files.delete(call.params[0])
        return Reply(encode({"id": call.params[0], "object": "file", "deleted": True}))


async def content(call: Call) -> Stream:
    """A file's bytes."""
    context = await call.admit()
    try:
        call.query({})
        told = await context.files.retrieve(call.params[0])
        call.open_stream(context)
        pieces = context.files.content(told.id)
        # Before the answer begins: what does not open is an error, not a file that breaks off.
        first = await anext(pieces, b"")
    except BaseException:
        await context.close()
        raise

    async def frames() -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(pieces):
                if first:
                    yield first
                async for piece in pieces:
                    yield piece
        finally:
            await context.close()

    entrance, is_current = context.session.entrance, context.session.is_current
    headers = (
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % told.bytes),
        (b"content-disposition", disposition(told.filename)),
    )
    return Stream(
        frames(),
        lambda: is_current(entrance),
        lambda: context.session.background(context.close()),
        headers=headers,
        framed=False,
    )


def disposition(filename: str) -> bytes:
    """``Content-Disposition`` that has every browser save the file under its name and none show it."""
    plain = "".join(letter if letter.isascii() and letter not in '"\\%' else "_" for letter in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}".encode()
