"""The audit log: nobody changes it unnoticed, nobody waits for it, nothing private stands in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.audit import log as audit_log
from nagaya.audit import merkle
from nagaya.audit.chain import BATCH, Batch, ChainStore, Checkpoint
from nagaya.audit.entry import PLATFORM, Chain, Entry, chain_of, harmless, network
from nagaya.audit.flood import Flood
from nagaya.audit.log import AuditLog
from nagaya.errors import AuditBroken, ConditionFailed, NotFound, SealBroken, StoreUnreachable
from nagaya.keys.keyring import Keyring
from nagaya.records.sealed_store import Delete, Partition, Put, Record, SealedStore
from nagaya.records.sealer import Sealer
from nagaya.stores.memory import MemoryStore
from nagaya.stores.store import Store
from nagaya.tenancy.tenant import Tenant, TenantState
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions

ACME = Chain("acme")
HEAD = b"head"


class HandClock:
    def __init__(self) -> None:
        self.s = 100.0

    def now_us(self) -> int:
        return 1_800_000_000_000_000 + int(self.s * 1e6)

    def monotonic_s(self) -> float:
        return self.s


class Trouble:
    """A sealed store whose writes fail as told: before they are kept, after it, or never answer."""

    def __init__(self, sealed: SealedStore) -> None:
        self.sealed = sealed
        self.fail_before: list[Exception] = []
        self.fail_after: list[Exception] = []
        self.held = asyncio.Event()
        self.held.set()
        self.only: str | None = None
        self.writes = 0

    async def get(self, partition: Partition, sort: bytes) -> Record | None:
        return await self.sealed.get(partition, sort)

    async def query(self, partition: Partition, **how: Any) -> Sequence[Record]:
        return await self.sealed.query(partition, **how)

    async def write(self, partition: Partition, changes: Sequence[Put | Delete]) -> None:
        self.writes += 1
        concerned = self.only in (None, partition.name)
        if concerned:
            await self.held.wait()
            if self.fail_before:
                raise self.fail_before.pop()
        await self.sealed.write(partition, changes)
        if concerned and self.fail_after:
            raise self.fail_after.pop()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def sealed(clock: HandClock) -> AsyncIterator[SealedStore]:
    keys, versions = MemoryKeys(), MemoryKeyVersions()
    await versions.rotate(keys, "_platform")
    keyring = Keyring("_platform", keys, versions, clock)
    yield SealedStore(Store(MemoryStore()), Sealer("_platform", keyring))
    await keyring.close()


@pytest.fixture
def store(sealed: SealedStore) -> Trouble:
    return Trouble(sealed)


@pytest.fixture
def log(store: Trouble, clock: HandClock) -> AuditLog:
    return AuditLog(store, clock)


def note(log: AuditLog, number: int = 0, *, chain: Chain = ACME, **fields: Any) -> None:
    log.record(chain, **({"actor": "mio", "role": "user", "action": "key.rotate", "target": f"n{number}"} | fields))


async def filled(log: AuditLog, count: int) -> AuditLog:
    for number in range(count):
        note(log, number)
    await log.flush()
    return log


def place(seq: int) -> tuple[Partition, bytes]:
    return Partition("audit", "acme"), seq.to_bytes(8, "big")


# --- what is written -------------------------------------------------------------------------------------------


async def test_entries_are_read_in_order_and_verify(log: AuditLog) -> None:
    await filled(log, 250)
    found = await log.read(ACME, limit=300)
    assert [entry.target for entry in found] == [f"n{number}" for number in range(250)]
    assert [entry.seq for entry in found] == list(range(1, 251))
    assert [entry.seq for entry in await log.read(ACME, after=248)] == [249, 250]
    assert len(await log.read(ACME, limit=0)) == 1
    verified = await log.verify(ACME)
    assert verified.count == 250
    assert await log.verify(ACME, kept=Checkpoint(250, verified.root)) == verified


async def test_an_empty_chain_verifies_as_empty(log: AuditLog) -> None:
    assert (await log.verify(PLATFORM)).count == 0
    assert await log.read(PLATFORM) == []


async def test_a_tenants_chain_holds_nothing_of_another(log: AuditLog) -> None:
    for chain in (ACME, Chain("acme-corp"), PLATFORM):
        note(log, chain=chain, target=f"of {chain}")
    await log.flush()
    for chain in (ACME, Chain("acme-corp"), PLATFORM):
        assert [entry.target for entry in await log.read(chain)] == [f"of {chain}"]


def test_the_platform_is_no_tenants_name() -> None:
    tenant = Tenant(id="acme", name="A", state=TenantState.ACTIVE, created_at_us=0, store="x://")
    assert (chain_of(tenant), chain_of(None)) == (ACME, PLATFORM)
    assert not PLATFORM[0].isalnum()


async def test_two_processes_append_to_one_chain_and_lose_nothing(store: Trouble, clock: HandClock) -> None:
    logs = [AuditLog(store, clock) for _ in range(4)]
    for round_number in range(5):
        for number, log in enumerate(logs):
            note(log, round_number, actor=f"process {number}")
        await asyncio.gather(*(log.flush() for log in logs))
    found = await logs[0].read(ACME)
    assert len(found) == 20
    for number in range(4):
        assert [entry.target for entry in found if entry.actor == f"process {number}"] == [f"n{n}" for n in range(5)]
    assert (await logs[0].verify(ACME)).count == 20


async def test_an_entry_is_proved_to_somebody_who_has_only_the_root(log: AuditLog) -> None:
    await filled(log, 37)
    first = await log.verify(ACME)
    await filled(log, 5)
    checkpoint, leaf, proof = await log.prove_entry(ACME, 7)
    assert checkpoint.root == (await log.verify(ACME)).root
    assert merkle.includes(leaf=leaf, index=6, count=checkpoint.count, proof=proof, root=checkpoint.root)
    checkpoint, growth = await log.prove_growth(ACME, first.count)
    assert merkle.continues(
        earlier=first.count, earlier_root=first.root, later=checkpoint.count, later_root=checkpoint.root, proof=growth
    )
    for wrong in (0, 43):
        with pytest.raises(NotFound):
            await log.prove_entry(ACME, wrong)
        with pytest.raises(NotFound):
            await log.prove_growth(ACME, wrong)


# --- tampering -------------------------------------------------------------------------------------------------


async def rewrite(sealed: SealedStore, at: int, **fields: Any) -> None:
    where = place(at)
    record = await sealed.get(*where)
    assert record is not None
    entry = msgspec.structs.replace(msgspec.json.decode(record.body, type=Entry), **fields)
    await sealed.put(*where, msgspec.json.encode(entry), expect=record.revision)


async def test_a_changed_entry_is_named_even_if_its_changer_has_the_keys(log: AuditLog, sealed: SealedStore) -> None:
    await filled(log, 12)
    await rewrite(sealed, 5, actor="somebody else")
    with pytest.raises(AuditBroken) as broken:
        await log.verify(ACME)
    assert broken.value.facts["entry"] == 6
    assert "continue" in str(broken.value.facts["problem"])


async def test_a_changed_last_entry_does_not_fit_the_head(log: AuditLog, sealed: SealedStore) -> None:
    await filled(log, 3)
    await rewrite(sealed, 3, outcome="failed")
    with pytest.raises(AuditBroken, match="head does not belong"):
        await log.verify(ACME)


@pytest.mark.parametrize(("seq", "named"), [(1, 1), (4, 4), (9, 9)])
async def test_a_removed_entry_is_missed_also_at_the_end(
    log: AuditLog, sealed: SealedStore, seq: int, named: int
) -> None:
    await filled(log, 9)
    await sealed.delete(*place(seq), expect=1)
    with pytest.raises(AuditBroken, match="missing") as broken:
        await log.verify(ACME)
    assert broken.value.facts["entry"] == named


async def test_a_removed_head_is_missed(log: AuditLog, sealed: SealedStore) -> None:
    await filled(log, 2)
    await sealed.delete(Partition("audit", "acme"), HEAD, expect=1)
    with pytest.raises(AuditBroken, match="head is missing"):
        await log.verify(ACME)


async def test_a_chain_that_begins_while_it_is_verified_is_no_broken_one(
    log: AuditLog, store: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = store.query

    async def begun_meanwhile(partition: Partition, **how: Any) -> Sequence[Record]:
        monkeypatch.setattr(store, "query", query)
        await filled(log, 3)
        return await query(partition, **how)

    monkeypatch.setattr(store, "query", begun_meanwhile)
    assert (await log.verify(ACME)).count == 3


async def test_an_entry_in_anothers_place_is_named(log: AuditLog, sealed: SealedStore) -> None:
    await filled(log, 5)
    await rewrite(sealed, 3, seq=4)
    with pytest.raises(AuditBroken, match="entry 4 stands in its place") as broken:
        await log.verify(ACME)
    assert broken.value.facts["entry"] == 3


async def test_bytes_that_are_no_entry_are_named(log: AuditLog, sealed: SealedStore) -> None:
    await filled(log, 5)
    await sealed.put(*place(3), b"{", expect=1)
    with pytest.raises(AuditBroken, match="no entry") as broken:
        await log.verify(ACME)
    assert broken.value.facts["entry"] == 3


async def test_an_entry_whose_seal_is_broken_is_named(log: AuditLog, sealed: SealedStore) -> None:
    await filled(log, 5)
    row = await sealed._store.get("audit/acme", (2).to_bytes(8, "big"))
    assert row is not None
    await sealed._store.put("audit/acme", row.sort, row.body[:-1] + bytes([row.body[-1] ^ 1]), row.revision)
    with pytest.raises(AuditBroken, match="does not open") as broken:
        await log.verify(ACME)
    assert broken.value.facts["entry"] == 2


async def test_a_seal_that_breaks_and_heals_is_still_an_error(
    log: AuditLog, store: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(log, 2)

    async def broken(*_: object, **__: object) -> None:
        raise SealBroken

    monkeypatch.setattr(store, "query", broken)
    with pytest.raises(SealBroken):
        await log.verify(ACME)


async def test_a_log_put_back_to_an_earlier_state_is_convicted_by_a_checkpoint(
    log: AuditLog, sealed: SealedStore
) -> None:
    await filled(log, 4)
    head = await sealed.get(Partition("audit", "acme"), HEAD)
    assert head is not None
    await filled(log, 3)
    seen = await log.verify(ACME)
    now = await sealed.get(Partition("audit", "acme"), HEAD)
    assert now is not None
    await sealed.put(Partition("audit", "acme"), HEAD, head.body, expect=now.revision)
    for seq in (5, 6, 7):
        await sealed.delete(*place(seq), expect=1)
    # By itself it is a log like any other...
    assert (await log.verify(ACME)).count == 4
    # ...but not the one of which this was taken, nor one that was ever empty.
    with pytest.raises(AuditBroken, match="checkpoint"):
        await log.verify(ACME, kept=Checkpoint(seen.count, seen.root))
    with pytest.raises(AuditBroken, match="checkpoint"):
        await log.verify(ACME, kept=Checkpoint(2, seen.root))
    assert (await log.verify(ACME, kept=Checkpoint(0, merkle.EMPTY_ROOT))).count == 4


# --- nobody waits, nothing is lost -----------------------------------------------------------------------------


async def test_recording_waits_for_nothing_while_the_store_hangs(log: AuditLog, store: Trouble) -> None:
    store.held.clear()
    log.start()
    for number in range(1_000):
        # No coroutine: it could not wait if it wanted to.
        note(log, number)
    with pytest.raises(TimeoutError):
        await log.flush(timeout_s=0.05)
    store.held.set()
    await log.close()
    assert (await log.verify(ACME)).count == 1_000


async def test_the_writer_writes_many_entries_at_once_and_by_itself(log: AuditLog, store: Trouble) -> None:
    log.start()
    log.start()
    for number in range(2 * BATCH):
        note(log, number)
    async with asyncio.timeout(30):
        while (await log.verify(ACME)).count < 2 * BATCH:
            await asyncio.sleep(0.02)
    assert store.writes == 2
    await log.close()
    await log.close()


@pytest.mark.parametrize("kept", [True, False])
async def test_a_write_in_doubt_is_neither_lost_nor_doubled(log: AuditLog, store: Trouble, kept: bool) -> None:
    await filled(log, 3)
    (store.fail_after if kept else store.fail_before).extend([StoreUnreachable(), StoreUnreachable()])
    note(log, 3)
    with pytest.raises(StoreUnreachable):
        await log.flush()
    if not kept:
        with pytest.raises(StoreUnreachable):
            await log.flush()
    store.fail_after.clear()
    note(log, 4)
    await log.flush()
    assert [entry.target for entry in await log.read(ACME)] == ["n0", "n1", "n2", "n3", "n4"]
    assert (await log.verify(ACME)).count == 5


async def test_a_write_in_doubt_is_found_also_when_others_wrote_after_it(
    log: AuditLog, store: Trouble, clock: HandClock
) -> None:
    store.fail_after.append(StoreUnreachable())
    note(log, 1)
    with pytest.raises(StoreUnreachable):
        await log.flush()
    await filled(AuditLog(store, clock), 1)
    await log.flush()
    assert [entry.target for entry in await log.read(ACME)] == ["n1", "n0"]


async def test_a_write_in_doubt_that_was_not_kept_goes_after_what_others_wrote(
    log: AuditLog, store: Trouble, clock: HandClock
) -> None:
    store.fail_before.append(StoreUnreachable())
    note(log, 1)
    with pytest.raises(StoreUnreachable):
        await log.flush()
    await filled(AuditLog(store, clock), 1)
    await log.flush()
    assert [entry.target for entry in await log.read(ACME)] == ["n0", "n1"]
    assert (await log.verify(ACME)).count == 2


async def test_the_writer_survives_a_failing_store_and_writes_when_it_is_back(
    log: AuditLog, store: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "RETRY_S", 0.01)
    store.fail_before.extend([StoreUnreachable(), ValueError("unexpected"), StoreUnreachable()])
    log.start()
    note(log)
    async with asyncio.timeout(30):
        while (await log.verify(ACME)).count < 1:
            await asyncio.sleep(0.02)
    await log.close()


async def test_one_chain_that_cannot_be_written_holds_up_no_other(log: AuditLog, store: Trouble) -> None:
    store.only = "acme"
    store.fail_before.extend([StoreUnreachable()] * 3)
    note(log)
    note(log, chain=Chain("globex"))
    with pytest.raises(StoreUnreachable):
        await log.flush()
    assert (await log.verify(Chain("globex"))).count == 1
    assert (await log.verify(ACME)).count == 0
    store.fail_before.clear()
    await log.flush()
    assert (await log.verify(ACME)).count == 1


async def test_a_chain_whose_head_was_forged_gets_no_more_entries_and_loses_none(
    log: AuditLog, sealed: SealedStore
) -> None:
    await filled(log, 2)
    head = await sealed.get(Partition("audit", "acme"), HEAD)
    assert head is not None
    await sealed.put(Partition("audit", "acme"), HEAD, b'{"count":7,"last":"","peaks":[]}', expect=head.revision)
    for number in range(BATCH + 1):
        note(log, number)
    await log.flush()
    note(log, 5, target="later")
    await log.flush()
    with pytest.raises(AuditBroken, match="head does not open"):
        await log.verify(ACME)
    told = await log.read(PLATFORM, limit=200)
    assert [entry.target for entry in told] == [*(f"acme: n{number}" for number in range(BATCH + 1)), "acme: later"]


async def test_a_forged_head_of_the_platform_itself_is_an_error_and_nothing_is_forgotten(
    log: AuditLog, sealed: SealedStore
) -> None:
    note(log, chain=PLATFORM)
    await log.flush()
    await sealed.put(Partition("audit", PLATFORM), HEAD, b"?", expect=1)
    note(log, 1, chain=PLATFORM)
    with pytest.raises(AuditBroken):
        await log.flush()
    assert log._count == 1


async def test_what_does_not_fit_is_counted_and_said(store: Trouble, clock: HandClock) -> None:
    log = AuditLog(store, clock, waiting=10)
    for number in range(25):
        note(log, number)
    await log.flush()
    assert len(await log.read(ACME)) == 10
    (said,) = await log.read(PLATFORM)
    assert (said.action, said.times, said.outcome) == ("audit.overflow", 15, "failed")
    note(log, 99)
    await log.flush()
    assert len(await log.read(ACME)) == 11


async def test_closing_while_the_store_hangs_ends_soon(
    log: AuditLog, store: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "CLOSE_S", 0.1)
    store.held.clear()
    log.start()
    note(log)
    await asyncio.sleep(0.1)
    async with asyncio.timeout(30):
        await log.close()
    store.held.set()


async def test_others_who_are_always_quicker_end_in_an_error(store: Trouble) -> None:
    store.fail_before.extend([ConditionFailed()] * 50)
    entry = Entry(seq=0, at_us=1, actor="a", role="user", action="x")
    with pytest.raises(ConditionFailed):
        await ChainStore(store).append(Batch(ACME, [entry]))
    await ChainStore(store).append(Batch(ACME, [entry]))


# --- floods ----------------------------------------------------------------------------------------------------


async def test_a_flood_of_refusals_becomes_twenty_lines_and_a_count(log: AuditLog, clock: HandClock) -> None:
    for _ in range(5_000):
        note(log, outcome="refused", action="enter")
    note(log, outcome="refused", action="other")
    note(log, outcome="done", action="enter")
    await log.flush()
    found = await log.read(ACME, limit=100)
    assert len(found) == 23
    assert sum(entry.times for entry in found if entry.action == "enter") == 5_001
    (counted,) = [entry for entry in found if entry.times > 1]
    assert (counted.times, counted.outcome, counted.actor) == (4_980, "refused", "mio")


async def test_a_flood_that_ends_is_noted_by_the_writer(log: AuditLog, clock: HandClock) -> None:
    for _ in range(30):
        note(log, outcome="refused")
    log.start()
    clock.s += 60
    async with asyncio.timeout(30):
        while sum(entry.times for entry in await log.read(ACME)) < 30:
            await asyncio.sleep(0.05)
    await log.close()


def test_a_new_window_begins_singly_and_memory_is_bounded() -> None:
    flood: Flood[str] = Flood(each=2, window_s=60, kinds=3)
    assert [flood.admit("a", 0.0) for _ in range(5)] == [True, True, False, False, False]
    assert flood.ended(59.9) == []
    assert flood.admit("a", 60.0)
    assert flood.ended(60.0) == [("a", 3)]
    assert flood.ended(200.0) == []
    for kind in "bbbcde":
        flood.admit(kind, 200.0)
    assert flood.ended(201.0) == [("b", 1)]
    assert len(flood._windows) == 3


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.floats(0, 30)), max_size=200))
def test_every_refusal_is_written_or_counted_exactly_once(steps: list[tuple[str, float]]) -> None:
    flood: Flood[str] = Flood(each=3, window_s=60, kinds=4)
    now_s, single, counted = 0.0, 0, 0
    for kind, later_s in steps:
        now_s += later_s
        single += flood.admit(kind, now_s)
        counted += sum(times for _, times in flood.ended(now_s))
    counted += sum(times for _, times in flood.ended(now_s, at_once=True))
    assert single + counted == len(steps)


# --- nothing private -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("203.0.113.77", "203.0.113.0/24"), ("::ffff:203.0.113.77", "203.0.113.0/24"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
        ("fe80::1%eth0", "fe80::/48"), ("localhost", ""), ("", ""), (None, ""), ("203.0.113.77:80", ""),
    ],
)  # fmt: skip
def test_of_an_address_only_the_network_is_kept(address: str | None, kept: str) -> None:
    assert network(address) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("mio@example.com wrote", "[e-mail] wrote"),
        ("<Mio.Kato+x@mail.example.co.jp>", "<[e-mail]>"),
        ("Bearer abc.def", "[token]"),
        ("eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.c2ln", "[token]"),
        ("used nk_live_0123456789abcdef", "used [token]"),
        ("key sk-proj-abcdefgh12", "key [token]"),
        ("nk_0198c3a1b2c374d5e6f708192a3b4c5d", "[token]"),
        ("sk_abcdefghij", "[token]"),
        ("given.sk_abcdefghij", "given.[token]"),
        ("A" * 80, "[token]"),
        ("from 203.0.113.77.", "from 203.0.113.0/24."),
        ("from 203.0.113.77:443", "from 203.0.113.0/24:443"),
        ("from 2001:db8:1:2:3:4:5:6", "from 2001:db8:1::/48"),
        ("at 12:30:45, version 1.2.3.4.5", "at 12:30:45, version 1.2.3.4.5"),
        ("999.1.1.1", "999.1.1.1"),
        ("line\nbreak\x00\ud800", "line break  "),
        ("長屋 屋根", "長屋 屋根"),
        ("conv_0198c3a1b2c374d5e6f708192a3b4c5d", "conv_0198c3a1b2c374d5e6f708192a3b4c5d"),
    ],
)
def test_a_text_loses_what_must_not_be_kept_and_nothing_else(text: str, kept: str) -> None:
    assert harmless(text) == kept


def test_a_long_text_is_cut() -> None:
    assert len(harmless("a b " * 10_000)) == 200


@given(st.text(max_size=300))
def test_any_text_can_be_recorded(text: str) -> None:
    msgspec.json.encode(harmless(text))


async def test_no_field_of_an_entry_holds_a_token_address_or_e_mail(
    log: AuditLog,
) -> None:
    secret = "mio@example.com nk_abcdefghijklmnop 203.0.113.77"
    log.record(
        ACME,
        actor=secret,
        role=secret,
        action=secret,
        target=secret,
        reason=secret,
        request_id=secret,
        address="203.0.113.77",
    )
    await log.flush()
    (entry,) = await log.read(ACME)
    stored = msgspec.json.encode(entry).decode()
    for private in ("mio@", "nk_abc", "113.77"):
        assert private not in stored
    assert entry.address == "203.0.113.0/24"
