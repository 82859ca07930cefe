"""``/v1/vector_stores``: stores, the files in them, batches of files, and search."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from nagaya.context.idempotency import Claim
from nagaya.context.library.search import wanted_of
from nagaya.context.library.shelf import FileStatus
from nagaya.context.library.stores import (
    ChunkingIn,
    ExpiresAfter,
    FileToAdd,
    Listed,
    VectorStoreFile,
)
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import InvalidValue
from nagaya.server.calls import Call, Reply, encode, flag_of, listed, number_of, order_of
from nagaya.server.openai.conversations import once
from nagaya.tenancy.principal import Scope

AttributesIn = dict[str, str | float | bool]
_PAGES = {"after": "", "before": "", "limit": "20", "order": "desc"}


class VectorStoreIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/vector_stores``; ``shared`` is Nagaya's own."""

    name: str | None = None
    description: str | None = None
    metadata: dict[str, str] | None = None
    file_ids: list[str] | None = None
    chunking_strategy: ChunkingIn | None = None
    expires_after: ExpiresAfter | None = None
    shared: bool = False


class VectorStoreChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/vector_stores/{id}``; ``shared`` is Nagaya's own."""

    name: str | None = None
    metadata: dict[str, str] | None = None
    expires_after: ExpiresAfter | msgspec.UnsetType | None = msgspec.UNSET
    shared: bool | None = None


class StoreFileIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST …/files``."""

    file_id: str
    attributes: AttributesIn | None = None
    chunking_strategy: ChunkingIn | None = None


class StoreFileChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST …/files/{id}``."""

    attributes: AttributesIn | None


class FileBatchIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST …/file_batches``: ``file_ids`` with what holds for all, or ``files`` each with its own."""

    file_ids: list[str] | None = None
    files: list[StoreFileIn] | None = None
    attributes: AttributesIn | None = None
    chunking_strategy: ChunkingIn | None = None


class SearchIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST …/search``. ``rewrite_query`` is taken and changes nothing: queries are searched as they
    are."""

    query: str | list[str]
    filters: dict[str, Any] | None = None
    max_num_results: int | None = None
    ranking_options: dict[str, Any] | None = None
    rewrite_query: bool | None = None


class TextPart(msgspec.Struct, frozen=True):
    """A piece of text."""

    text: str
    type: Literal["text"] = "text"


class SearchResult(msgspec.Struct, frozen=True):
    """A passage that was found."""

    file_id: str
    filename: str
    score: float
    attributes: AttributesIn
    content: list[TextPart]


class SearchPage(msgspec.Struct, frozen=True):
    """What was found, best first. There is one page."""

    search_query: list[str]
    data: list[SearchResult]
    has_more: bool = False
    next_page: str | None = None
    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"


async def create(call: Call) -> Reply:
    """Make a vector store, with files to be indexed."""
    async with await call.admit() as context:
        body = await call.body()
        given = call.decode(body, VectorStoreIn)

        async def work(held: Claim | None) -> bytes:
            made = await context.vector_stores.create(
                name=given.name,
                description=given.description,
                metadata=given.metadata,
                files=[FileToAdd(file_id, None, given.chunking_strategy) for file_id in given.file_ids or ()],
                expires_after=given.expires_after,
                shared=given.shared,
                store_id=held.id("vs") if held else None,
            )
            return encode(made)

        return await once(call, context, body, work)


async def listing(call: Call) -> Reply:
    """The caller's vector stores, newest first; ``shared``: those others share."""
    async with await call.admit() as context:
        query = call.query({**_PAGES, "shared": ""})
        page = await context.vector_stores.list(
            shared=flag_of(query["shared"], "shared") is True,
            after=query["after"] or None,
            before=query["before"] or None,
            limit=number_of(query["limit"], "limit", lowest=1, highest=100),
            order=order_of(query["order"]),
        )
        return listed(page.data, has_more=page.has_more)


async def retrieve(call: Call) -> Reply:
    """One vector store."""
    async with await call.admit() as context:
        return Reply(encode(await context.vector_stores.retrieve(call.params[0])))


async def update(call: Call) -> Reply:
    """Change a store's name, metadata, expiry or sharing; what is not given stays."""
    async with await call.admit() as context:
        given = await call.json(VectorStoreChange)
        changed = await context.vector_stores.update(
            call.params[0],
            name=given.name,
            metadata=given.metadata,
            expires_after=given.expires_after,
            shared=given.shared,
        )
        return Reply(encode(changed))


async def delete(call: Call) -> Reply:
    """Delete a store with its texts and vectors; the files stay."""
    async with await call.admit() as context:
        await context.vector_stores.delete(call.params[0])
        return Reply(encode({"id": call.params[0], "object": "vector_store.deleted", "deleted": True}))


async def search(call: Call) -> Reply:
    """The passages of a store that fit a query best."""
    async with await call.admit(Scope.READ) as context:
        given = await call.json(SearchIn)
        queries = [given.query] if isinstance(given.query, str) else given.query
        wanted = wanted_of(given.filters, given.max_num_results, given.ranking_options)
        found = await context.library_search.search([call.params[0]], queries, wanted)
        data = [
            SearchResult(one.file_id, one.filename, one.score, one.attributes, [TextPart(one.text)]) for one in found
        ]
        return Reply(encode(SearchPage(queries, data)))


async def add_file(call: Call) -> Reply:
    """Put a file into a store; it is indexed in the background."""
    async with await call.admit() as context:
        given = await call.json(StoreFileIn)
        made = await context.vector_stores.add_file(
            call.params[0],
            FileToAdd(given.file_id, given.attributes, given.chunking_strategy),
            language=call.language,
        )
        return Reply(encode(made))


async def list_files(call: Call) -> Reply:
    """The files of a store, newest first; ``filter``: those of one status."""
    async with await call.admit() as context:
        page = await _files(call, context, None)
        return listed(page.data, has_more=page.has_more)


async def list_batch_files(call: Call) -> Reply:
    """The files of a batch, newest first; ``filter``: those of one status."""
    async with await call.admit() as context:
        page = await _files(call, context, call.params[1])
        return listed(page.data, has_more=page.has_more)


async def _files(call: Call, context: TenantContext, batch: str | None) -> Listed[VectorStoreFile]:
    query = call.query({**_PAGES, "filter": ""})
    return await context.vector_stores.list_files(
        call.params[0],
        status=_status_of(query["filter"]),
        batch=batch,
        after=query["after"] or None,
        before=query["before"] or None,
        limit=number_of(query["limit"], "limit", lowest=1, highest=100),
        order=order_of(query["order"]),
        language=call.language,
    )


def _status_of(text: str) -> FileStatus | None:
    match text:
        case "":
            return None
        case "in_progress" | "completed" | "failed" | "cancelled":
            return text
    raise InvalidValue(param="filter", at="filter", detail="in_progress, completed, failed or cancelled")


async def retrieve_file(call: Call) -> Reply:
    """One file of a store."""
    async with await call.admit() as context:
        store_id, file_id = call.params[0], call.params[1]
        return Reply(encode(await context.vector_stores.file(store_id, file_id, language=call.language)))


async def update_file(call: Call) -> Reply:
    """Give a file of a store other attributes."""
    async with await call.admit() as context:
        given = await call.json(StoreFileChange)
        changed = await context.vector_stores.update_file(
            call.params[0], call.params[1], given.attributes or {}, language=call.language
        )
        return Reply(encode(changed))


async def delete_file(call: Call) -> Reply:
    """Take a file out of a store with its texts and vectors; the file stays."""
    async with await call.admit() as context:
        await context.vector_stores.delete_file(call.params[0], call.params[1])
        return Reply(encode({"id": call.params[1], "object": "vector_store.file.deleted", "deleted": True}))


async def file_content(call: Call) -> Reply:
    """The text of a file in a store, in its chunks."""
    async with await call.admit() as context:
        texts = await context.vector_stores.content(call.params[0], call.params[1])
        shown: dict[str, Any] = {
            "object": "vector_store.file_content.page",
            "data": [TextPart(text) for text in texts],
            "has_more": False,
            "next_page": None,
        }
        return Reply(encode(shown))


async def create_batch(call: Call) -> Reply:
    """Put up to 2,000 files into a store together."""
    async with await call.admit() as context:
        given = await call.json(FileBatchIn)
        if (given.file_ids is None) == (given.files is None):
            raise InvalidValue(param="file_ids", at="file_ids", detail="either file_ids or files")
        files = (
            [FileToAdd(file_id, given.attributes, given.chunking_strategy) for file_id in given.file_ids]
            if given.file_ids is not None
            else [FileToAdd(one.file_id, one.attributes, one.chunking_strategy) for one in given.files or ()]
        )
        return Reply(encode(await context.vector_stores.add_batch(call.params[0], files)))


async def retrieve_batch(call: Call) -> Reply:
    """How far a batch of files is."""
    async with await call.admit() as context:
        return Reply(encode(await context.vector_stores.batch(call.params[0], call.params[1])))


async def cancel_batch(call: Call) -> Reply:
    """Index no more files of a batch."""
    async with await call.admit() as context:
        return Reply(encode(await context.vector_stores.cancel_batch(call.params[0], call.params[1])))
