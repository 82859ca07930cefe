"""What it takes to put a long conversation's context together. Run: ``python -m benchmarks.context [--quick]``.

A conversation of a thousand turns, questions and answers in turns, in a room that keeps nothing of it in memory between
two rounds but what a server would. The window is small, so that a summary stands for most of it; the same is taken
where everything fits. The first time, with the summary to be made by rule, is shown without a target.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from benchmarks.figures import Row, at_most, main, row, us
from nagaya.context.assembly import assemble, window_for_history
from nagaya.context.items import Item, Message
from nagaya.context.tenant_context import TenantContext
from nagaya.settings import Settings
from nagaya.wiring import Nagaya

TURNS = 1000
WINDOWS = {"8,192": 8_192, "128,000": 128_000}


async def conversation(tenant: TenantContext) -> str:
    chat = await tenant.conversations.create(title="long")
    items: list[Item] = []
    for number in range(TURNS // 2):
        items.append(
            Message.user(
                f"Order {number}: please send {number % 40} tiles of kind Kawara-{number % 7} to house {number}. " * 2
            )
        )
        items.append(
            Message.assistant(f"Noted: order {number} with {number % 40} tiles will be sent on day {number % 28}. " * 2)
        )
    for start in range(0, len(items), 20):
        await tenant.conversations.append(chat.id, *items[start : start + 20])
    return chat.id


async def one(tenant: TenantContext, window: str, count: int) -> Row:
    model = await tenant.session.model(None)
    chat = await conversation(tenant)
    room = window_for_history(WINDOWS[window], 1024, 200)

    async def assembled_s() -> float:
        began_s = time.perf_counter()
        await assemble(tenant.session, tenant.responses._meter, chat, model, room)
        return time.perf_counter() - began_s

    first_s = await assembled_s()
    times = [await assembled_s() for _ in range(count)]
    middle_s = statistics.median(times)
    job = f"context of a conversation of {TURNS:,} turns, window of {window} tokens: p50"
    shown = f"{us(middle_s)}, slowest {us(max(times))}; the first time, with its summary, {us(first_s)}"
    return row(job, "–", at_most(middle_s * 1e3, 10, "{:.1f} ms"), shown)


async def measure(folder: Path, quick: bool) -> list[Row]:
    async with Nagaya.open(settings=Settings(data=str(folder))) as nagaya:
        await nagaya.tenants.create("acme", name="Acme")
        entrance = await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))
        async with nagaya.session(entrance) as tenant:
            return [await one(tenant, window, 20 if quick else 200) for window in WINDOWS]


if __name__ == "__main__":
    main(measure)
