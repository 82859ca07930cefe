"""Nonces: each is drawn once, whichever thread or process draws."""

from __future__ import annotations

import os
import threading

import pytest

from nagaya.records.sealer import fresh_nonce


def test_no_nonce_is_drawn_twice_by_whichever_thread() -> None:
    drawn: list[list[bytes]] = [[] for _ in range(8)]

    def draw(mine: list[bytes]) -> None:
        mine.extend(fresh_nonce() for _ in range(2_000))

    threads = [threading.Thread(target=draw, args=(mine,)) for mine in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = [nonce for mine in drawn for nonce in mine]
    assert len(set(together)) == len(together) == 16_000
    assert {len(nonce) for nonce in together} == {12}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_process_draws_nonces_of_its_own() -> None:
    fresh_nonce()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"".join(fresh_nonce() for _ in range(300)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as theirs:
        raw = theirs.read()
    os.waitpid(child, 0)
    of_child = {raw[at : at + 12] for at in range(0, len(raw), 12)}
    assert len(of_child) == 300
    assert not of_child & {fresh_nonce() for _ in range(300)}
