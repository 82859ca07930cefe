"""LangGraph's long-term store over a tenant's sealed records."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypedDict, cast

import msgspec
from langchain_core.embeddings import Embeddings
from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
)
from langgraph.store.base.embed import AEmbeddingsFunc, EmbeddingsFunc, ensure_embeddings, get_text_at_path

from nagaya.context.drawers import Delete, Drawer, Folder, Record
from nagaya.context.embedding import EmbeddingsIn
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import ConditionFailed, Conflict
from nagaya.integrations.langgraph.bridge import Bridge
from nagaya.integrations.langgraph.store_items import (
    StoredItem,
    Vector,
    decode,
    encode,
    fits,
    matches,
    moment,
    nearness,
    unit,
)

_ATTEMPTS: Final = 16
_PAGE: Final = 500
_TEXTS_AT_ONCE: Final = 256
_US_PER_MINUTE: Final = 60_000_000
Namespace = tuple[str, ...]


class SemanticIndex(TypedDict, total=False):
    """What is searched by meaning. ``fields``: paths in the values, as LangGraph spells them (all of it, where none are
    given). ``embed``: an embedding model or function of LangChain's; the tenant's own model, where none is given."""

    fields: Sequence[str]
    embed: Embeddings | EmbeddingsFunc | AEmbeddingsFunc | str


class NagayaStore(BaseStore):
    """Keeps a graph's long-term memory in the tenant's own store, sealed under its key. To be made in the event loop.

    Items belong to the user whose session this is; another user's or tenant's namespace of the same name is another
    one. With ``index`` values are searched by meaning, exactly and without an index at rest. Items that have expired
    are not shown any more, and removed when they are met or by :meth:`sweep_ttl`.

    Raises what the session raises. The methods without ``a`` may be called from other threads only.
    """

    supports_ttl = True

    def __init__(
        self, tenant: TenantContext, *, index: SemanticIndex | None = None, ttl: TTLConfig | None = None
    ) -> None:
        self.ttl_config = ttl
        self._tenant = tenant
        self._drawer: Drawer = tenant.drawer("langgraph-store")
        self._bridge = Bridge()
        self._fields = None if index is None else list(index.get("fields") or ["$"])
        embed = None if index is None else index.get("embed")
        self._embeddings = None if embed is None else ensure_embeddings(embed)
        # Namespaces known to be in the index, by the mark that stands for each.
        self._listed: set[bytes] = set()

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Do several operations; reads see what was there before the writes. Of writes to one item the last holds."""
        given = list(ops)
        results: list[Result] = []
        puts: dict[tuple[Namespace, str], PutOp] = {}
        for op in given:
            if isinstance(op, GetOp):
                results.append(await self._get(op))
            elif isinstance(op, SearchOp):
                results.append(await self._search(op))
            elif isinstance(op, ListNamespacesOp):
                results.append(await self._namespaces(op))
            elif isinstance(op, PutOp):
                puts[op.namespace, op.key] = op
                results.append(None)
            else:
                raise ValueError(f"not an operation of a store: {type(op).__name__}")
        if puts:
            model, vectors = await self._vectors_of(list(puts.values()))
            for (namespace, key), op in puts.items():
                await self._put(namespace, key, op, model, vectors.get((namespace, key), []))
        return results

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """As :meth:`abatch`, from another thread."""
        return self._bridge.wait(self.abatch(ops))

    async def sweep_ttl(self) -> int:
        """Remove every item that has expired; how many there were. Harmless to repeat."""
        removed = 0
        for namespace in await self._all_namespaces():
            folder = await self._folder(namespace)
            for record, item in await self._items(folder):
                if self._has_expired(item):
                    removed += await self._remove(folder, record)
        return removed

    # --- one item ---

    async def _get(self, op: GetOp) -> Item | None:
        folder, sort = await self._folder(op.namespace), await self._sort(op.key)
        record = await folder.get(sort)
        if record is None:
            return None
        item = decode(record.body)
        if self._has_expired(item):
            await self._remove(folder, record)
            return None
        if op.refresh_ttl:
            await self._refresh(folder, record, item)
        return Item(
            value=json.loads(item.value),
            key=item.key,
            namespace=op.namespace,
            created_at=moment(item.created_us),
            updated_at=moment(item.updated_us),
        )

    async def _put(self, namespace: Namespace, key: str, op: PutOp, model: str, vectors: list[Vector]) -> None:
        folder, sort = await self._folder(namespace), await self._sort(key)
        if op.value is None:
            await folder.remove(sort)
            return
        now_us = self._now_us()
        ttl_us = int((op.ttl or 0) * _US_PER_MINUTE)
        item = StoredItem(
            key=key,
            value=json.dumps(dict(op.value), ensure_ascii=True).encode(),
            created_us=now_us,
            updated_us=now_us,
            ttl_us=ttl_us,
            expires_us=now_us + ttl_us if ttl_us else 0,
            model=model if vectors else "",
            vectors=vectors,
        )
        await self._list(namespace)
        expect = 0
        for _ in range(_ATTEMPTS):
            try:
                await folder.put(sort, encode(item), expect=expect)
                return
            except ConditionFailed:
                record = await folder.get(sort)
                expect = 0 if record is None else record.revision
                if record is not None and not self._has_expired(former := decode(record.body)):
                    item.created_us = former.created_us
        raise Conflict

    async def _refresh(self, folder: Folder, record: Record, item: StoredItem) -> None:
        if item.ttl_us:
            item.expires_us = self._now_us() + item.ttl_us
            # Whoever changed it meanwhile has refreshed it too.
            with contextlib.suppress(ConditionFailed):
                await folder.put(record.sort, encode(item), expect=record.revision)

    async def _remove(self, folder: Folder, record: Record) -> int:
        # Read again: what was removed and put anew has the revision of the former one.
        if await folder.get(record.sort) == record:
            with contextlib.suppress(ConditionFailed):
                await folder.write([Delete(record.sort, record.revision)])
                return 1
        return 0

    def _now_us(self) -> int:
        return self._tenant.session.clock.now_us()

    def _has_expired(self, item: StoredItem) -> bool:
        return 0 < item.expires_us <= self._now_us()

    # --- many ---

    async def _search(self, op: SearchOp) -> list[SearchItem]:
        size = len(op.namespace_prefix)
        found: list[tuple[Namespace, Folder, Record, StoredItem, dict[str, Any]]] = []
        for namespace in await self._all_namespaces():
            if namespace[:size] != op.namespace_prefix:
                continue
            folder = await self._folder(namespace)
            for record, item in await self._items(folder):
                if self._has_expired(item):
                    await self._remove(folder, record)
                    continue
                value = json.loads(item.value)
                if op.filter is None or fits(value, op.filter):
                    found.append((namespace, folder, record, item, value))
        found.sort(key=lambda each: each[3].updated_us, reverse=True)
        scores: list[float | None] = [None] * len(found)
        if op.query and self._fields is not None and found:
            scores = await self._scores(op.query, [item for _, _, _, item, _ in found])
        ranked = sorted(range(len(found)), key=lambda n: -2.0 if (score := scores[n]) is None else score, reverse=True)
        shown: list[SearchItem] = []
        for number in ranked[op.offset : op.offset + op.limit]:
            namespace, folder, record, item, value = found[number]
            if op.refresh_ttl:
                await self._refresh(folder, record, item)
            shown.append(
                SearchItem(
                    namespace=namespace,
                    key=item.key,
                    value=value,
                    created_at=moment(item.created_us),
                    updated_at=moment(item.updated_us),
                    score=scores[number],
                )
            )
        return shown

    async def _scores(self, query: str, items: Sequence[StoredItem]) -> list[float | None]:
        """How near each item's nearest text is to the query; None for what has no vectors of this model."""
        model, (asked, *_) = await self._embed([query])
        vectors, owners = [], []
        for number, item in enumerate(items):
            if item.model == model:
                vectors += item.vectors
                owners += [number] * len(item.vectors)
        scores: list[float | None] = [None] * len(items)
        for owner, near in zip(owners, nearness(asked, vectors), strict=True):
            best = scores[owner]
            scores[owner] = near if best is None else max(best, near)
        return scores

    async def _items(self, folder: Folder) -> list[tuple[Record, StoredItem]]:
        found: list[tuple[Record, StoredItem]] = []
        after = b""
        while rows := await folder.query(after=after, limit=_PAGE):
            found += [(row, decode(row.body)) for row in rows]
            after = rows[-1].sort
        return found

    # --- namespaces ---

    async def _namespaces(self, op: ListNamespacesOp) -> list[Namespace]:
        found = set()
        for namespace in await self._all_namespaces():
            if all(matches(namespace, condition) for condition in op.match_conditions or ()) and (
                any(not self._has_expired(item) for _, item in await self._items(await self._folder(namespace)))
            ):
                found.add(namespace if op.max_depth is None else namespace[: op.max_depth])
        return sorted(found)[op.offset : op.offset + op.limit]

    async def _all_namespaces(self) -> list[Namespace]:
        """Every namespace in which there ever was something."""
        folder = await self._drawer.folder("namespaces")
        found: list[Namespace] = []
        after = b""
        while rows := await folder.query(after=after, limit=_PAGE):
            found += [msgspec.json.decode(row.body, type=Namespace) for row in rows]
            after = rows[-1].sort
        return found

    async def _list(self, namespace: Namespace) -> None:
        mark = (await self._drawer.mark("namespace", *namespace))[:16]
        if mark not in self._listed:
            with contextlib.suppress(ConditionFailed):
                await (await self._drawer.folder("namespaces")).put(mark, msgspec.json.encode(namespace))
            self._listed.add(mark)

    async def _folder(self, namespace: Namespace) -> Folder:
        return await self._drawer.folder("items", *namespace)

    async def _sort(self, key: str) -> bytes:
        return (await self._drawer.mark("key", key))[:16]

    # --- vectors ---

    async def _vectors_of(self, ops: Sequence[PutOp]) -> tuple[str, dict[tuple[Namespace, str], list[Vector]]]:
        """The model, and the vectors of each item's texts."""
        texts: list[str] = []
        owners: list[tuple[Namespace, str]] = []
        for op in ops:
            if op.value is None or op.index is False or self._fields is None:
                continue
            for field in self._fields if op.index is None else op.index:
                found = [text for text in get_text_at_path(op.value, field) if text.strip()]
                texts += found
                owners += [(op.namespace, op.key)] * len(found)
        model, made = await self._embed(texts)
        vectors: dict[tuple[Namespace, str], list[Vector]] = {}
        for owner, vector in zip(owners, made, strict=True):
            vectors.setdefault(owner, []).append(vector)
        return model, vectors

    async def _embed(self, texts: Sequence[str]) -> tuple[str, list[Vector]]:
        model, vectors = "", list[Vector]()
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            some = list(texts[at : at + _TEXTS_AT_ONCE])
            if self._embeddings is not None:
                model = type(self._embeddings).__name__
                found: Sequence[Sequence[float]] = await self._embeddings.aembed_documents(some)
            else:
                answer = await self._tenant.embeddings.create(EmbeddingsIn(input=[*some]))
                model = answer.model
                found = [cast("list[float]", each.embedding) for each in answer.data]
            vectors += map(unit, found)
        return model, vectors
