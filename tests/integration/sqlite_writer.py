"""A process that writes to a folder of rooms until it is killed: ``python sqlite_writer.py FOLDER MODE``.

``append`` appends to several conversations of several rooms at once and says so line by line, each line after the
append was acknowledged; ``reopen`` does with one file open at a time, so that it opens and closes them again and again.
``raise`` raises one counter a hundred times, against whoever else does; ``leave`` closes the file after each time.
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial

import uvloop

from nagaya.errors import ConditionFailed
from nagaya.stores.driver import Put
from nagaya.stores.sqlite import SqliteHouse
from nagaya.stores.store import Store

ROOMS = ("acme", "beta")
CONVERSATIONS = tuple(f"conv_{number}" for number in range(4))
RAISES = 100


def item_key(number: int) -> bytes:
    return b"i" + number.to_bytes(8, "big")


def item_body(room: str, conversation: str, number: int) -> bytes:
    return f"{room} {conversation} {number} ".encode() * 30


async def append_for_ever(room: str, store: Store, conversation: str) -> None:
    head = await store.get(conversation, b"head")
    number, revision = (0, 0) if head is None else (int(head.body), head.revision)
    while True:
        # An item pair and the head that counts them: whole or not at all.
        await store.batch(
            conversation,
            [
                Put(item_key(number), item_body(room, conversation, number)),
                Put(item_key(number + 1), item_body(room, conversation, number + 1)),
                Put(b"head", b"%d" % (number + 2), revision),
            ],
        )
        number, revision = number + 2, revision + 1
        await store.put(f"log/{conversation}", item_key(revision), b"x" * 700)
        os.write(1, f"{room} {conversation} {number} {revision}\n".encode())


async def append(folder: str, max_open: int = 512) -> None:
    house = SqliteHouse(folder, max_open=max_open)
    stores = {room: Store(await house.open(room)) for room in ROOMS}
    await asyncio.gather(
        *(append_for_ever(room, store, name) for room, store in stores.items() for name in CONVERSATIONS)
    )


async def raise_counter(folder: str, leaves: bool = False) -> None:
    house = SqliteHouse(folder)
    store = Store(await house.open("acme"), deadline_s=60)

    async def raise_some(times: int) -> None:
        while times:
            row = await store.get("p", b"n")
            assert row is not None
            try:
                await store.put("p", b"n", b"%d" % (int(row.body) + 1), row.revision)
            except ConditionFailed:
                continue
            await store.put("log", f"{os.getpid()}-{row.revision}".encode(), b"x" * 900)
            times -= 1
            if leaves:
                await house.quiet("acme")

    await asyncio.gather(*(raise_some(RAISES // 4) for _ in range(4)))
    await house.close()


if __name__ == "__main__":
    modes = {
        "append": append,
        "reopen": partial(append, max_open=1),
        "raise": raise_counter,
        "leave": partial(raise_counter, leaves=True),
    }
    uvloop.run(modes[sys.argv[2]](sys.argv[1]))
