"""Cosmos DB when things go wrong: cut connections, throttling, silence, requests that arrive twice, too large bodies."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from nagaya.errors import (
    AddressRefused,
    CloudCredentialsRefused,
    ConditionFailed,
    InvalidValue,
    PermissionMissing,
    RegionRefused,
    SessionClosed,
    StoreBusy,
    StoreDamaged,
    StoreUnreachable,
    TenantExists,
)
from nagaya.stores import cosmos_items
from nagaya.stores.cosmos import INDEXING, CosmosHouse, open_house
from nagaya.stores.driver import MAX_BATCH, Delete, Put, Row
from nagaya.stores.store import Store
from parts.azure_cloud import CLIENT, AzureCloud, trust_file
from parts.cosmos_shim import Fault

pytest_plugins = ["parts.azure_fixtures"]

WRITES = ("POST docs", "PATCH docs", "batch")
LARGE = bytes(range(251)) * 9000  # 2.2 MB: four pieces


def house_of(azure: AzureCloud, *, secret: bytes | None = None, database: str | None = None, **more) -> CosmosHouse:
    deadline_s = more.pop("deadline_s", 10.0)
    regions = more.pop("regions", ())
    account = azure.open_account(azure.key_secret() if secret is None else secret, regions=regions)
    database = database or azure.new_database()
    return CosmosHouse(account, name=azure.account, database=database, deadline_s=deadline_s, **more)


@contextlib.asynccontextmanager
async def opened(azure: AzureCloud, **more) -> AsyncIterator[Store]:
    house = house_of(azure, **more)
    try:
        await house.create("acme")
        yield Store(await house.open("acme"), deadline_s=more.get("deadline_s", 10.0))
    finally:
        await house.close()


@pytest.fixture
async def store(azure: AzureCloud) -> AsyncIterator[Store]:
    async with opened(azure) as store:
        azure.cosmos.seen.clear()
        yield store


async def kinds(store: Store) -> list[tuple[str, object]]:
    """One write of each kind, as (name, awaitable), with what they need put there before."""
    await store.put("p", b"old", b"1")
    await store.put("p", b"gone", b"1")
    await store.put("p", b"b", b"1")
    return [
        ("create", lambda: store.put("p", b"new", b"1")),
        ("patch", lambda: store.put("p", b"old", b"2", expect=1)),
        ("batch", lambda: store.batch("p", [Put(b"a", b"x"), Put(b"b", b"2", 1), Delete(b"gone", 1)])),
    ]


async def all_done(store: Store) -> bool:
    rows = {row.sort: (row.revision, row.body) for row in await store.query("p")}
    return rows == {b"new": (1, b"1"), b"old": (2, b"2"), b"a": (1, b"x"), b"b": (2, b"2")}


# --- what a call costs


async def test_every_write_read_and_page_is_one_request(azure, store):
    seen = azure.cosmos.seen
    await store.put("p", b"k", b"1")
    assert dict(seen) == {"POST docs": 1}
    await store.put("p", b"k", b"2", expect=1)
    assert dict(seen) == {"POST docs": 1, "PATCH docs": 1}
    await store.get("p", b"k")
    assert seen["GET docs"] == 1
    await store.batch("p", [Put(b"a", b"x"), Delete(b"k", 2)])
    assert seen["batch"] == 1
    await store.query("p", limit=50, descending=True)
    assert seen["query"] == 1
    await store.delete("p", b"a", expect=1)
    assert seen["batch"] == 2
    assert sum(seen.values()) == 6


async def test_a_batch_of_a_hundred_deletes_learns_the_etags_first(azure, store):
    keys = [b"%03d" % number for number in range(MAX_BATCH)]
    await store.batch("p", [Put(key, b"x") for key in keys])
    azure.cosmos.seen.clear()
    with pytest.raises(ConditionFailed):
        await store.batch("p", [Delete(key, 2) for key in keys])
    assert len(await store.query("p", limit=200)) == MAX_BATCH
    azure.cosmos.seen.clear()
    await store.batch("p", [Delete(key, 1) for key in keys])
    assert dict(azure.cosmos.seen) == {"query": 1, "batch": 1}
    assert list(await store.query("p")) == []


async def test_a_row_that_changed_after_its_etag_was_learnt_is_not_deleted(azure, store, monkeypatch):
    keys = [b"%03d" % number for number in range(60)]
    await store.batch("p", [Put(key, b"x") for key in keys])
    driver = store._driver
    learn = driver._etags

    async def learn_and_lose(*given):
        found = await learn(*given)
        await driver.write("p", [Put(keys[7], b"changed", 1)])
        return found

    monkeypatch.setattr(driver, "_etags", learn_and_lose)
    with pytest.raises(ConditionFailed):
        await store.batch("p", [Delete(key, 1) for key in keys])
    assert len(await store.query("p")) == 60


async def test_pages_shorter_than_asked_are_put_together(azure, store):
    await store.batch("p", [Put(b"%03d" % number, b"x") for number in range(90)])
    azure.cosmos.page_items = 20
    azure.cosmos.seen.clear()
    rows = await store.query("p", limit=50)
    assert [row.sort for row in rows] == [b"%03d" % number for number in range(50)]
    assert azure.cosmos.seen["query"] == 3
    assert len([row async for row in store.scan_all(page=70)]) == 90


# --- throttling


@pytest.mark.parametrize("kind", [*WRITES, "GET docs", "query"])
async def test_throttling_is_waited_out_as_long_as_the_service_asks(azure, store, kind):
    writes = await kinds(store)
    azure.cosmos.faults.append(Fault("429", kind, times=3, wait_s=0.1))
    started = time.monotonic()
    for _, write in writes:
        await write()
    assert await store.get("p", b"a") is not None
    assert await all_done(store)
    assert time.monotonic() - started >= 0.3


async def test_throttling_past_the_deadline_is_said_at_once_and_nothing_was_written(azure):
    async with opened(azure, deadline_s=60.0) as store:
        azure.cosmos.faults.append(Fault("429", "POST docs", wait_s=90))
        async with asyncio.timeout(30):
            with pytest.raises(StoreBusy) as refused:
                await store.put("p", b"k", b"x")
        assert refused.value.retry_after_s >= 90
        assert await store.get("p", b"k") is None


# --- cuts, silence, double delivery


@pytest.mark.parametrize("what", ["cut", "cut-after", "503", "503-after", "twice"])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_write_that_had_to_be_sent_again_is_done_once(azure, store, what, times):
    for name, write in await kinds(store):
        kind = {"create": "POST docs", "patch": "PATCH docs", "batch": "batch"}[name]
        azure.cosmos.faults.append(Fault(what, kind, times=times))
        if what == "twice":
            # The doubled request is answered like a stranger's: nobody here sent it again.
            with contextlib.suppress(ConditionFailed):
                await write()
        else:
            await write()
    assert await all_done(store)


@pytest.mark.parametrize("what", ["cut", "cut-after", "503"])
async def test_a_read_is_asked_again(azure, store, what):
    await store.put("p", b"k", b"x")
    for kind in ("GET docs", "query"):
        azure.cosmos.faults.append(Fault(what, kind))
    assert await store.get("p", b"k") == Row(b"k", 1, b"x")
    assert list(await store.query("p")) == [Row(b"k", 1, b"x")]


async def test_a_replica_that_is_behind_is_asked_again_and_never_taken_at_its_word(azure, store):
    await store.put("p", b"k", b"x")
    azure.cosmos.faults += [Fault("behind", "GET docs", times=2), Fault("behind", "query")]
    assert await store.get("p", b"k") == Row(b"k", 1, b"x")
    assert list(await store.query("p")) == [Row(b"k", 1, b"x")]
    azure.cosmos.faults.append(Fault("behind", "GET docs", times=1000))
    with pytest.raises(StoreUnreachable):
        await store.get("p", b"k")
    azure.cosmos.faults.clear()


async def test_a_delete_whose_answer_was_lost_is_not_called_a_conflict(azure, store):
    await store.put("p", b"k", b"x")
    azure.cosmos.faults.append(Fault("cut-after", "batch"))
    with pytest.raises(StoreUnreachable):
        await store.delete("p", b"k", expect=1)
    assert await store.get("p", b"k") is None


async def test_a_delete_that_never_arrived_is_a_conflict_where_another_changed_the_row(azure, store):
    await store.put("p", b"k", b"x")
    azure.cosmos.faults.append(Fault("cut", "batch"))
    await store.put("p", b"k", b"y", expect=1)
    with pytest.raises(ConditionFailed):
        await store.delete("p", b"k", expect=1)


@pytest.mark.parametrize("what", ["cut", "503"])
async def test_a_resent_write_still_loses_to_another_writer(azure, store, what):
    await store.put("p", b"k", b"1")
    await store.put("p", b"k", b"2", expect=1)
    azure.cosmos.faults += [Fault(what, "POST docs"), Fault(what, "PATCH docs"), Fault(what, "batch")]
    for write in (
        store.put("p", b"k", b"mine"),
        store.put("p", b"none", b"mine", expect=3),
        store.batch("p", [Put(b"new", b"x"), Put(b"k", b"mine", 1)]),
    ):
        with pytest.raises((ConditionFailed, StoreUnreachable)):
            await write
    assert list(await store.query("p")) == [Row(b"k", 2, b"2")]


async def test_a_service_that_stays_away_is_unreachable(azure, store):
    azure.cosmos.faults.append(Fault("503", times=1000))
    with pytest.raises(StoreUnreachable):
        await store.put("p", b"k", b"x")
    with pytest.raises(StoreUnreachable):
        await store.query("p")


async def test_a_silent_service_costs_no_more_than_the_deadline(azure):
    async with opened(azure, deadline_s=60.0) as store:
        azure.cosmos.faults.append(Fault("hang", "POST docs", times=3, wait_s=30.0))
        async with asyncio.timeout(20):
            with pytest.raises(StoreUnreachable):
                await Store(store._driver, deadline_s=1.0).put("p", b"k", b"x")


async def test_a_silent_connection_is_given_up_for_another_within_the_deadline(azure):
    async with opened(azure, deadline_s=10.0) as store:
        azure.cosmos.faults.append(Fault("hang", "GET docs", wait_s=30.0))
        assert await store.get("p", b"k") is None


async def test_cancelled_writes_leave_whole_batches_or_nothing(azure, store):
    azure.cosmos.faults.append(Fault("hang", "batch", times=6, wait_s=0.2))
    batches = [[Put(b"%d-%d" % (number, part), b"x") for part in range(5)] for number in range(6)]
    tasks = [asyncio.create_task(store.batch("p", batch)) for batch in batches]
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    # Where the machine stood still meanwhile, they are through.
    assert not any(isinstance(each, Exception) for each in await asyncio.gather(*tasks, return_exceptions=True))
    await asyncio.sleep(0.3)
    counts = [0] * 6
    for row in await store.query("p"):
        counts[int(row.sort[:1])] += 1
    assert set(counts) <= {0, 5}


# --- large bodies


async def items_in(azure: AzureCloud, store: Store, partition: str = "p") -> list[dict]:
    container = store._driver._container
    key = cosmos_items.partition_key("acme", partition)
    query = container.query_items("SELECT c.id FROM c WHERE c.n >= 0", partition_key=key)
    return [each async for each in query]


async def test_a_large_body_leaves_no_piece_behind_when_it_is_replaced_or_deleted(azure, store):
    await store.put("p", b"k", LARGE)
    assert len(await items_in(azure, store)) == 5
    await store.put("p", b"k", LARGE[::-1], expect=1)
    assert len(await items_in(azure, store)) == 5
    assert (await store.get("p", b"k")).body == LARGE[::-1]
    await store.batch("p", [Put(b"k", b"small", 2), Put(b"l", LARGE)])
    assert [len(row.body) for row in await store.query("p")] == [5, len(LARGE)]
    assert len(await items_in(azure, store)) == 6
    await store.delete("p", b"l", expect=1)
    assert len(await items_in(azure, store)) == 1
    assert (await store.scan())[0].row.body == b"small"


async def test_a_refused_large_write_takes_its_pieces_away(azure, store):
    await store.put("p", b"k", b"small")
    with pytest.raises(ConditionFailed):
        await store.put("p", b"k", LARGE)
    assert len(await items_in(azure, store)) == 1


async def test_deleting_many_large_bodies_at_once_leaves_nothing(azure, store):
    keys = [b"%03d" % number for number in range(60)]
    await store.batch("p", [Put(key, LARGE[:800_000] if key == b"007" else b"x") for key in keys])
    assert len(await items_in(azure, store)) == 62
    await store.batch("p", [Delete(key, 1) for key in keys])
    assert await items_in(azure, store) == []


async def test_many_bodies_that_together_are_too_large_for_a_batch_are_written_whole(azure, store):
    bodies = {b"%02d" % number: bytes([number]) * 150_000 for number in range(12)}
    await store.batch("p", [Put(key, body) for key, body in bodies.items()])
    assert {row.sort: row.body for row in await store.query("p")} == bodies


async def test_a_reader_finds_a_large_body_whole_while_it_is_replaced(azure, store):
    await store.put("p", b"k", LARGE)

    async def replace() -> None:
        for revision in range(1, 5):
            await store.put("p", b"k", bytes([revision]) * len(LARGE), expect=revision)

    async def read() -> None:
        for _ in range(6):
            body = (await store.get("p", b"k")).body
            assert len(body) == len(LARGE)
            assert body == LARGE or body == body[:1] * len(LARGE)
            assert len((await store.query("p"))[0].body) == len(LARGE)

    await asyncio.gather(replace(), read(), read())


async def test_a_body_whose_pieces_were_taken_away_is_damage_and_not_a_shorter_body(azure, store):
    await store.put("p", b"k", LARGE)
    container = store._driver._container
    piece = next(each["id"] for each in await items_in(azure, store) if each["id"].endswith("~1"))
    await container.delete_item(piece, partition_key="acme#p")
    with pytest.raises(StoreDamaged):
        await store.get("p", b"k")
    with pytest.raises(StoreDamaged):
        await store.query("p")


@pytest.mark.parametrize("what", ["cut-after", "503"])
async def test_pieces_that_had_to_be_sent_again_lie_there_once(azure, store, what):
    azure.cosmos.faults.append(Fault(what, "POST docs", times=2))
    await store.put("p", b"k", LARGE)
    assert (await store.get("p", b"k")).body == LARGE
    assert len(await items_in(azure, store)) == 5


# --- rooms


async def test_a_room_whose_making_was_answered_late_is_made(azure):
    house = house_of(azure)
    azure.cosmos.faults.append(Fault("cut-after", "POST docs"))
    await house.create("acme")
    with pytest.raises(TenantExists):
        await house.create("acme")
    assert await house.exists("acme")
    await house.close()


async def test_a_room_that_was_half_destroyed_does_not_open_and_is_finished_later(azure):
    house = house_of(azure, shared=True)
    await house.create("acme")
    await Store(await house.open("acme")).put("p", b"k", b"x")
    azure.cosmos.faults.append(Fault("503", "batch", times=1000))
    with pytest.raises(StoreUnreachable):
        await house.destroy("acme")
    azure.cosmos.faults.clear()
    with pytest.raises(StoreDamaged):
        await house.open("acme")
    with pytest.raises(TenantExists):
        await house.create("acme")
    await house.destroy("acme")
    assert await house.size_bytes("acme") == 0
    await house.create("acme")
    assert [row async for row in Store(await house.open("acme")).scan_all()] == []
    await house.close()


async def test_partitions_of_rooms_whose_names_begin_alike_are_apart_in_one_container(azure):
    house = house_of(azure, shared=True)
    rooms = ("acme", "acme-corp", "acm", "acme2")
    for room in rooms:
        await house.create(room)
        for partition in ("p", "p%00", "\x00", "p#", "~"):
            await Store(await house.open(room)).put(partition, b"k", room.encode())
    for room in rooms:
        found = [(row.partition, row.row.body) async for row in Store(await house.open(room)).scan_all(page=2)]
        assert {body for _, body in found} == {room.encode()}
        assert sorted(partition for partition, _ in found) == sorted(("p", "p%00", "\x00", "p#", "~"))
    await house.close()


async def test_a_service_principal_uses_a_container_that_is_there_and_makes_none(azure):
    database = azure.new_database()
    house = house_of(azure, secret=azure.secret(), database=database)
    with pytest.raises(PermissionMissing, match="nagaya-acme"):
        await house.create("acme")
    by_key = house_of(azure, database=database)
    container = await (await by_key._database()).create_container_if_not_exists(
        "nagaya-acme", {"paths": ["/pk"], "kind": "Hash", "version": 2}, indexing_policy=INDEXING
    )
    assert container.id == "nagaya-acme"
    await house.create("acme")
    store = Store(await house.open("acme"))
    await store.batch("p", [Put(b"%03d" % number, b"x") for number in range(100)])
    await store.put("q", b"k", LARGE)
    await house.destroy("acme")
    with pytest.raises(StoreDamaged):
        await house.open("acme")
    assert await house.size_bytes("acme") == 0
    await house.create("acme")
    await house.close()
    await by_key.close()


@pytest.mark.parametrize(
    ("paths", "indexing"), [(["/other"], INDEXING), (["/pk"], {"includedPaths": [{"path": "/*"}], "excludedPaths": []})]
)
async def test_a_container_that_could_not_serve_is_refused_before_it_is_used(azure, paths, indexing):
    house = house_of(azure)
    database = await house._database()
    key = {"paths": paths, "kind": "Hash", "version": 2}
    await database.create_container_if_not_exists("nagaya-acme", key, indexing_policy=indexing)
    with pytest.raises(InvalidValue, match="composite index"):
        await house.create("acme")
    await house.close()


async def test_a_missing_database_is_named(azure):
    house = house_of(azure, database="never-made")
    with pytest.raises(InvalidValue, match="never-made"):
        await house.create("acme")
    with pytest.raises(StoreDamaged):
        await house.open("acme")
    await house.destroy("acme")
    await house.close()


# --- accounts


async def test_an_account_in_another_region_is_refused(azure):
    for regions, allowed in ((["Japan East"], True), (["Japan East", "West US"], False), (["West US"], False)):
        azure.cosmos.regions = regions
        house = house_of(azure, regions=("japaneast", "japanwest"))
        if allowed:
            await house.create("acme")
        else:
            with pytest.raises(RegionRefused, match="West US"):
                await house.create("acme")
        await house.close()


async def test_an_account_that_writes_in_several_regions_is_refused(azure):
    azure.cosmos.regions = ["Japan East", "Japan West"]
    azure.cosmos.writes_everywhere = True
    house = house_of(azure)
    with pytest.raises(InvalidValue, match="several write regions"):
        await house.create("acme")
    await house.close()


async def test_an_account_that_may_read_old_values_is_refused_unless_that_is_accepted(azure):
    azure.cosmos.consistency = "Session"
    house = house_of(azure)
    with pytest.raises(InvalidValue, match="consistency"):
        await house.create("acme")
    await house.close()
    async with opened(azure, weak=True) as store:
        await store.put("p", b"k", b"x")


async def test_a_principal_without_the_role_is_told_which_one(azure):
    azure.cosmos.denied.add(CLIENT)
    house = house_of(azure, secret=azure.secret())
    with pytest.raises(PermissionMissing, match="Cosmos DB Built-in Data Contributor"):
        await house.open("acme")
    await house.close()


async def test_a_wrong_account_key_is_a_refusal_and_not_an_outage(azure):
    house = house_of(azure, secret=azure.key_secret(cosmos_key="d3Jvbmc="))
    with pytest.raises(CloudCredentialsRefused):
        await house.open("acme")
    await house.close()


async def test_a_store_at_an_address_inside_is_refused(azure):
    secret = azure.key_secret()
    for place in ("127.0.0.1:8081", "localhost:8081", "metadata.internal", "[fe80::1]"):
        with pytest.raises((AddressRefused, InvalidValue)):
            await open_house(f"cosmos://{place}/db", azure.surroundings(secret=secret, allowed=()))
    house = await open_house(f"cosmos://{azure.account}/db", azure.surroundings(secret=secret, allowed=()))
    with pytest.raises(AddressRefused):  # the name resolves to loopback, which nobody allowed here
        await house.open("acme")
    await house.close()


async def test_a_house_is_opened_by_its_url(azure, tmp_path, monkeypatch):
    from nagaya.clouds.azure import default_trust

    monkeypatch.setenv("SSL_CERT_FILE", str(trust_file(azure, tmp_path)))
    default_trust.cache_clear()
    try:
        endpoint = f"https://{azure.account}/"
        secret = azure.key_secret(cosmos_endpoint=endpoint, database_name=azure.new_database())
        surroundings = azure.surroundings(secret=secret)
        for url in ("cosmos://acme/?shared=true&container=all", "cosmos://acme"):
            house = await open_house(url, surroundings)
            await house.create("acme")
            await Store(await house.open("acme")).put("p", b"k", b"x")
            await house.close()
    finally:
        default_trust.cache_clear()


@pytest.mark.parametrize(
    "url",
    [
        "cosmos://acme/db?shared=maybe",
        "cosmos://acme/db?consistency=eventual",
        "cosmos://acme/db?shared=true&shared=false",
        "cosmos://acme/db?key=secret",
        "cosmos://acme/db#x",
        "cosmos://acme/a/b",
        "cosmos://acme/",
        "cosmos://acme/db?container=../x",
        "cosmos:///db",
        "cosmos://AC_ME/db",
        "cosmos://acme.documents.test:notaport/db",
    ],
)
async def test_an_address_that_says_something_else_is_refused(azure, url):
    with pytest.raises(InvalidValue):
        await open_house(url, azure.surroundings(secret=azure.key_secret()))


async def test_the_secrets_endpoint_must_be_the_accounts_own(azure):
    secret = azure.key_secret(cosmos_endpoint="https://globex.documents.test/")
    with pytest.raises(InvalidValue, match="acme"):
        await open_house("cosmos://acme/db", azure.surroundings(secret=secret))


async def test_a_closed_house_opens_nothing(azure):
    house = house_of(azure)
    await house.create("acme")
    for _ in range(2):
        await house.close()
    with pytest.raises(SessionClosed):
        await house.open("acme")


async def test_a_room_whose_items_others_delete_too_is_still_emptied(azure, monkeypatch):
    house = house_of(azure, shared=True)
    await house.create("acme")
    await Store(await house.open("acme")).batch("p", [Put(b"%d" % number, b"x") for number in range(5)])
    delete = house._delete

    async def after_another(container, key, names):
        await container.delete_item(names[2], partition_key=key)
        await delete(container, key, names)

    monkeypatch.setattr(house, "_delete", after_another)
    await house.destroy("acme")
    assert not await house.exists("acme")
    await house.close()


async def test_a_delete_of_several_that_was_refused_is_a_conflict_even_when_it_was_sent_twice(azure, store):
    await store.batch("p", [Put(b"a", b"x"), Put(b"b", b"x")])
    await store.put("p", b"b", b"y", expect=1)
    azure.cosmos.faults.append(Fault("cut", "batch"))
    with pytest.raises(ConditionFailed):
        await store.batch("p", [Delete(b"a", 1), Delete(b"b", 1)])
    assert len(await store.query("p")) == 2


async def test_a_room_destroyed_under_its_reader_is_damage_and_not_an_empty_room(azure):
    house = house_of(azure)
    await house.create("acme")
    store = Store(await house.open("acme"))
    await store.put("p", b"k", LARGE)
    await house.destroy("acme")
    for call in (store.put("p", b"l", b"x"), store.put("p", b"l", LARGE), store.get("p", b"k"), store.query("p")):
        with pytest.raises(StoreDamaged):
            await call
    await house.close()
