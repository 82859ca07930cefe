"""``/v1/chat/completions``, ``/v1/embeddings`` and ``/v1/models``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from functools import partial

import structlog

from nagaya.context.chat import ChatChunk, ChatIn
from nagaya.context.embedding import EmbeddingsIn
from nagaya.context.idempotency import Answer, Claim, claim
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import NagayaError, NotFound
from nagaya.server.calls import SSE, Call, Reply, Stream, encode, error_frame, frame_of
from nagaya.server.openai.conversations import once

_log = structlog.get_logger(__name__)


async def create(call: Call) -> Reply | Stream:
    """Answer messages, whole or as a stream. Kept is only the answer to an ``Idempotency-Key``, for a day."""
    context = await call.admit()
    streaming = False
    try:
        body = await call.body()
        given = call.decode(body, ChatIn)
        if given.stream:
            call.open_stream(context)
            held: Claim | None = None
            key = call.header(b"idempotency-key")
            if key is not None:
                found = await claim(context.session, key, f"{call.method} {call.path}\n".encode() + body)
                if isinstance(found, Answer):
                    return Reply(found.body, found.status, (SSE,))
                held = found
            chunks = context.chat.stream(given)
            try:
                # The first chunk is made here, so that a bad request is a 400 and not a broken stream.
                first = await anext(chunks)
            except NagayaError:
                if held is not None:
                    await held.abandon()
                raise
            streaming = True
            entrance, is_current = context.session.entrance, context.session.is_current

            def leave() -> None:
                context.session.background(_close(chunks, context, held))

            frames = _frames(first, chunks, context, call.language, held)
            last_word = partial(error_frame, language=call.language)
            return Stream(frames, lambda: is_current(entrance), leave, ends_with_reader=True, last_word=last_word)

        async def work(_: Claim | None) -> bytes:
            return encode(await context.chat.create(given))

        return await once(call, context, body, work)
    finally:
        if not streaming:
            await context.close()


async def _close(chunks: AsyncGenerator[ChatChunk, None], context: TenantContext, held: Claim | None) -> None:
    """Closing the chunks cancels the call at the model; chat keeps nothing but an idempotent request's whole answer."""
    await chunks.aclose()
    if held is not None:
        # Changes nothing where the answer was kept.
        with contextlib.suppress(NagayaError):
            await held.abandon()
    await context.close()


async def _frames(
    first: ChatChunk,
    chunks: AsyncGenerator[ChatChunk, None],
    context: TenantContext,
    language: str,
    held: Claim | None,
) -> AsyncGenerator[bytes, None]:
    try:
        frame = frame_of(None, encode(first))
        sent = [frame]
        yield frame
        async with contextlib.nullcontext() if held is None else held.kept():
            async for chunk in chunks:
                frame = frame_of(None, encode(chunk))
                if held is not None:
                    sent.append(frame)
                yield frame
        frame = frame_of(None, b"[DONE]")
        if held is not None:
            await held.finish(200, b"".join([*sent, frame]))
        yield frame
    except NagayaError as error:
        _log.warning("chat stream failed", action="chat.stream_failed", code=error.code)
        yield error_frame(error, language)
    finally:
        await _close(chunks, context, held)


async def embeddings(call: Call) -> Reply:
    """The vectors of one or more texts."""
    async with await call.admit() as context:
        return Reply(encode(await context.embeddings.create(await call.json(EmbeddingsIn))))


async def _models(context: TenantContext) -> list[dict[str, object]]:
    names = [model.name for model in await context.session.models()]
    names += [model.name for model in await context.session.embeddings()]
    created = context.tenant.created_at_us // 1_000_000
    return [{"id": name, "object": "model", "created": created, "owned_by": "nagaya"} for name in names]


async def models(call: Call) -> Reply:
    """The tenant's models, the preferred one first, and its embedding models."""
    async with await call.admit() as context:
        return Reply(encode({"object": "list", "data": await _models(context)}))


async def model(call: Call) -> Reply:
    """One model by its name."""
    async with await call.admit() as context:
        for shown in await _models(context):
            if shown["id"] == call.params[0]:
                return Reply(encode(shown))
        raise NotFound("model", param="model")
