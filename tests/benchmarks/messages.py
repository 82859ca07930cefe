"""A search through a user's whole history, with its words noted, beside reading all of it. Run:
``python -m benchmarks.messages [--quick]``.

Two hundred conversations of fifty messages each, put together from sentences of the quality set, English and Japanese; a
round asks six queries and is their median. The yardstick is the same search where nothing is noted: it reads every
message. "Cold" opens the tenant's room anew, so that nothing of the words is in memory.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from benchmarks.figures import Row, at_least, main, ratio, ratios, row, us
from benchmarks.search import texts
from nagaya.context import message_search, message_words
from nagaya.context.items import Message
from nagaya.context.message_words import Words, note_words, read_words
from nagaya.context.places import WORDS
from nagaya.context.tenant_context import TenantContext
from nagaya.settings import Settings
from nagaya.wiring import Nagaya
from quality.measure import LANGUAGES, queries

CONVERSATIONS = 200
MESSAGES = 50
QUERIES = 6


async def filled(tenant: TenantContext) -> list[str]:
    each, made = texts(CONVERSATIONS * MESSAGES), []
    for _ in range(CONVERSATIONS):
        chat = await tenant.conversations.create(items=[Message.user(next(each)) for _ in range(10)])
        for _ in range((MESSAGES - 10) // 20):
            await tenant.conversations.append(chat.id, *[Message.user(next(each)) for _ in range(20)])
        made.append(chat.id)
    return made


async def searched_s(tenant: TenantContext, query: str) -> float:
    began_s = time.perf_counter()
    page = await tenant.search(query, types=["conversations"])
    taken_s = time.perf_counter() - began_s
    assert page.complete
    return taken_s


async def nothing_noted(*given: object) -> Words | None:
    words = await read_words(*given)  # type: ignore[arg-type] # what the search gives, handed on
    return None if words is None else Words(words.head, [], [])


async def sizes(tenant: TenantContext) -> tuple[int, int]:
    """The bytes of all words and of everything else in conversations."""
    noted = rest = 0
    after = None
    while rows := await tenant.session.records.scan(after=after, limit=500):
        for partition, record in rows:
            if partition.collection == "conversation":
                if record.sort.startswith(WORDS):
                    noted += len(record.body)
                else:
                    rest += len(record.body)
        after = f"{rows[-1][0].collection}/{rows[-1][0].name}", rows[-1][1].sort
    return noted, rest


async def measure(folder: Path, quick: bool) -> list[Row]:
    settings = Settings(data=str(folder))
    asked = [each.text for pair in zip(*map(queries, LANGUAGES), strict=False) for each in pair]
    asked = asked[:QUERIES]
    async with Nagaya.open(settings=settings) as nagaya:
        await nagaya.tenants.create("acme", name="Acme")
        token = await nagaya.tenants.mint("acme", "mio")
        async with nagaya.session(await nagaya.enter(token)) as tenant:
            message_search.note_soon = lambda *_: None  # it is done here, and measured
            made = await filled(tenant)
            began_s = time.perf_counter()
            for each in made:
                await note_words(tenant.session, each)
            noting_s = (time.perf_counter() - began_s) / (CONVERSATIONS * MESSAGES)
            noted, rest = await sizes(tenant)
            scans, warm = [], []
            for _ in range(3 if quick else 5):
                message_search.read_words = nothing_noted  # type: ignore[assignment] # the yardstick
                scans.append(statistics.median([await searched_s(tenant, query) for query in asked]))
                message_search.read_words = message_words.read_words
                await searched_s(tenant, asked[0])
                warm.append(statistics.median([await searched_s(tenant, query) for query in asked]))
    cold = []
    for query in asked[: len(scans)]:
        async with Nagaya.open(settings=settings) as nagaya, nagaya.session(await nagaya.enter(token)) as tenant:
            cold.append(await searched_s(tenant, query))
    job = f"search of {CONVERSATIONS * MESSAGES:,} messages in {CONVERSATIONS} conversations"
    yardstick = "the same search where nothing is noted: every message is read"
    scan = us(statistics.median(scans))
    kept = f"; noting takes {us(noting_s)} a message and {noted / rest:.1f}× the messages' bytes"
    return [
        row(
            f"{job}, warm: p50",
            yardstick,
            at_least(1 / ratio(warm, scans), 10),
            f"{us(statistics.median(warm))}, slowest round {us(max(warm))}; reading all {scan}{kept}",
            ratios(warm, scans),
        ),
        row(
            f"{job}, cold (room opened anew): p50",
            yardstick,
            at_least(1 / ratio(cold, scans), 5),
            f"{us(statistics.median(cold))}, slowest {us(max(cold))}; reading all {scan}",
        ),
    ]


if __name__ == "__main__":
    main(measure)
