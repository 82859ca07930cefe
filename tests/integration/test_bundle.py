"""A tenant in one file: what goes in comes out, under other keys; what was altered, cut or locked for others does not."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nagaya.context.drawers import Put
from nagaya.context.items import Message
from nagaya.errors import (
    BundleBroken,
    BundleBusy,
    BundleInTheWay,
    BundleKeyRefused,
    BundleNotBegun,
    BundleSignerUnknown,
    KeyDestroyed,
    NagayaError,
    NotFound,
    TenantExists,
)
from nagaya.lifecycle import bundle_export, bundle_import
from nagaya.lifecycle.bundle_format import BundleHeader, Frame, Passphrase, frames_of, header_bytes, read_header
from nagaya.records.sealed_store import Partition
from nagaya.settings import Settings
from nagaya.tenancy.tenant import TenantState
from nagaya.wiring import Nagaya, bundles
from nagaya.wiring.parts import TenantParts

WORD = Passphrase("correct horse battery")
CANARY = "canary-7f3a9c"


@pytest.fixture
async def nagaya(tmp_path: Path) -> AsyncIterator[Nagaya]:
    async with Nagaya.open(settings=Settings(data=str(tmp_path / "data"))) as opened:
        await opened.tenants.create("acme", name="Acme")
        yield opened


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def furnish(nagaya: Nagaya, tenant: str, canary: str, *, chats: int = 3) -> None:
    """Conversations with items, a fork, an answer, a drawer's record, a blob and a secret, all with the canary."""
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint(tenant, "mio"))) as inside:
        for number in range(chats):
            chat = await inside.conversations.create(metadata={"title": f"{canary}-{number}"})
            for at in range(7):
                await inside.conversations.append(chat.id, Message.user(f"{canary} {number} {at}"))
        folder = await inside.drawer("notebook").folder("pages")
        await folder.write([Put(b"one", f"{canary} drawer".encode())])
    parts = await TenantParts.open(nagaya, await nagaya.registry.tenant(tenant))
    try:
        blobs = await parts.blobs()
        await blobs.put("files/one", _pieces(canary.encode() * 200_000))
        await blobs.put("files/empty", _pieces(b""))
        await parts.secrets.put("llm-connection", f'{{"h": "{canary}"}}'.encode())
    finally:
        await parts.close()


async def everything(nagaya: Nagaya, tenant: str) -> dict[Any, bytes]:
    """Every record and blob of a tenant in clear, but for the key of its blind index and its secrets."""
    parts = await TenantParts.open(nagaya, await nagaya.registry.tenant(tenant))
    found: dict[Any, bytes] = {}
    try:
        after = None
        while rows := await parts.records.scan(after=after, limit=50):
            for partition, record in rows:
                if partition.collection not in ("index-key", "secret"):
                    found[partition, record.sort] = record.body
            after = f"{rows[-1][0].collection}/{rows[-1][0].name}", rows[-1][1].sort
        blobs = await parts.blobs()
        async for each in blobs.list_all():
            info = await blobs.info(each.name)
            assert info is not None
            found[each.name, info.seal] = b"".join([piece async for piece in blobs.read(each.name, seal=info.seal)])
    finally:
        await parts.close()
    return found


async def texts(nagaya: Nagaya, tenant: str, user: str = "mio") -> dict[str, list[str]]:
    """What a user finds in his list of conversations, by id."""
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint(tenant, user))) as inside:
        return {
            chat.id: [item.text for item in await inside.conversations.items(chat.id) if isinstance(item, Message)]
            for chat in (await inside.conversations.list()).data
        }


async def missing(nagaya: Nagaya, tenant: str) -> bool:
    try:
        await nagaya.registry.tenant(tenant)
    except NotFound:
        return not await nagaya.registry.key_versions(tenant)
    return False


async def test_what_is_exported_is_imported_under_another_id_whole(nagaya: Nagaya, tmp_path: Path):
    await furnish(nagaya, "acme", CANARY)
    file = tmp_path / "acme.bundle"
    sent = await nagaya.bundles.export("acme", file, WORD)
    got = await nagaya.bundles.import_(file, WORD, tenant_id="bolt")
    assert (got.counts, got.left_out) == (sent.counts, {"secret": 1})
    assert sent.counts["blob"] == 2
    assert sent.counts["conversation"] >= 3 * 8
    assert await everything(nagaya, "bolt") == await everything(nagaya, "acme")
    # The list of a user's conversations lies under a blind name, and so does a drawer.
    assert await texts(nagaya, "bolt") == await texts(nagaya, "acme") != {}
    assert await texts(nagaya, "bolt", "tom") == {}
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("bolt", "mio"))) as inside:
        folder = await inside.drawer("notebook").folder("pages")
        held = await folder.get(b"one")
        assert held is not None
        assert held.body == f"{CANARY} drawer".encode()
        chat = await inside.conversations.create()
        await inside.conversations.append(chat.id, Message.user("after the move"))
    assert len(await texts(nagaya, "bolt")) == 4
    assert len(await texts(nagaya, "acme")) == 3


async def test_answers_forks_and_files_come_along_for_whose_they_are(nagaya: Nagaya, tmp_path: Path):
    content = CANARY.encode() * 150_000
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))) as inside:
        chat = await inside.conversations.create()
        answer = await inside.responses.create("Who mends the roof?", conversation=chat.id)
        fork = await inside.conversations.fork(chat.id)
        await inside.conversations.append(fork.id, Message.user("only in the fork"))
        kept = await inside.files.create("roof.txt", _pieces(content), purpose="assistants")
        forked = await inside.conversations.items(fork.id)
        trunk = await inside.conversations.items(chat.id)
    await nagaya.bundles.export("acme", tmp_path / "file", WORD)
    await nagaya.bundles.import_(tmp_path / "file", WORD, tenant_id="bolt")
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("bolt", "mio"))) as inside:
        assert await inside.responses.retrieve(answer.id) == answer
        assert await inside.conversations.items(fork.id) == forked
        assert await inside.conversations.items(chat.id) == trunk
        assert await inside.files.retrieve(kept.id) == kept
        assert b"".join([piece async for piece in inside.files.content(kept.id)]) == content
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("bolt", "tom"))) as inside:
        for found in (inside.files.retrieve(kept.id), inside.conversations.items(fork.id)):
            with pytest.raises(NotFound):
                await found


async def test_a_copy_of_a_copy_keeps_its_blind_names(nagaya: Nagaya, tmp_path: Path):
    await furnish(nagaya, "acme", CANARY)
    await nagaya.bundles.export("acme", tmp_path / "one", WORD)
    await nagaya.bundles.import_(tmp_path / "one", WORD, tenant_id="bolt")
    await nagaya.bundles.export("bolt", tmp_path / "two", WORD)
    await nagaya.bundles.import_(tmp_path / "two", WORD, tenant_id="crane")
    assert await texts(nagaya, "crane") == await texts(nagaya, "acme")


async def test_a_bundle_goes_to_another_platform(nagaya: Nagaya, tmp_path: Path):
    await furnish(nagaya, "acme", CANARY)
    key = X25519PrivateKey.generate()
    sent = await nagaya.bundles.export("acme", tmp_path / "acme.bundle", key.public_key())
    async with Nagaya.open(settings=Settings(data=str(tmp_path / "other"))) as other:
        with pytest.raises(BundleSignerUnknown):
            # Anybody could have locked it for this key.
            await other.bundles.import_(tmp_path / "acme.bundle", key)
        await other.bundles.import_(tmp_path / "acme.bundle", key, signer=sent.signer)
        assert await everything(other, "acme") == await everything(nagaya, "acme")
        assert await texts(other, "acme") == await texts(nagaya, "acme")


async def test_a_bundle_holds_nothing_in_clear_and_nothing_of_another_tenant(nagaya: Nagaya, tmp_path: Path):
    await nagaya.tenants.create("bolt", name="Bolt")
    await furnish(nagaya, "acme", CANARY)
    await furnish(nagaya, "bolt", "others-51e2")
    file = tmp_path / "acme.bundle"
    await nagaya.bundles.export("acme", file, WORD)
    raw = file.read_bytes()
    assert file.stat().st_mode & 0o077 == 0
    for text in (CANARY, "others-51e2", "conversation"):  # a shorter word stands in random bytes now and then
        assert text.encode() not in raw
    await nagaya.bundles.import_(file, WORD, tenant_id="crane")
    bodies = b"".join((await everything(nagaya, "crane")).values())
    assert CANARY.encode() in bodies
    assert b"others-51e2" not in bodies
    parts = await TenantParts.open(nagaya, await nagaya.registry.tenant("crane"))
    try:
        assert await parts.secrets.get("llm-connection") is None
    finally:
        await parts.close()


@pytest.mark.parametrize("opener", [Passphrase("another passphrase"), X25519PrivateKey.generate()])
async def test_another_key_opens_nothing(nagaya: Nagaya, tmp_path: Path, opener):
    await nagaya.bundles.export("acme", tmp_path / "file", WORD)
    with pytest.raises(BundleKeyRefused):
        await nagaya.bundles.import_(tmp_path / "file", opener, tenant_id="bolt")
    assert await missing(nagaya, "bolt")
    await nagaya.bundles.export("acme", tmp_path / "other", X25519PrivateKey.generate().public_key())
    with pytest.raises(BundleKeyRefused):
        await nagaya.bundles.import_(tmp_path / "other", opener, tenant_id="bolt")
    assert await missing(nagaya, "bolt")


async def test_a_short_passphrase_locks_nothing(nagaya: Nagaya, tmp_path: Path):
    with pytest.raises(BundleKeyRefused):
        await nagaya.bundles.export("acme", tmp_path / "file", Passphrase("short"))
    assert not (tmp_path / "file").exists()


def _parts_of(file: Path) -> tuple[BundleHeader, list[Frame], bytes]:
    with file.open("rb") as handle:
        header, _ = read_header(handle)
        return header, list(frames_of(handle)), handle.read()


async def test_a_flipped_byte_anywhere_a_cut_and_moved_frames_are_refused(
    nagaya: Nagaya, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bundle_export, "_FRAME_BYTES", 1)
    await furnish(nagaya, "acme", CANARY, chats=1)
    file, bad = tmp_path / "file", tmp_path / "bad"
    await nagaya.bundles.export("acme", file, WORD)
    raw = file.read_bytes()
    header, frames, signed = _parts_of(file)
    assert len(frames) > 8
    start = header_bytes(header)
    flipped = [raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :] for at in range(0, len(raw), len(raw) // 20)]
    cut = [raw[:at] for at in (0, 5, 11, len(start) - 1, len(start), len(raw) // 2, len(raw) - 64, len(raw) - 1)]
    whole = [frame.raw for frame in frames]
    moved = [
        start + b"".join([whole[1], whole[0], *whole[2:]]) + signed,
        start + b"".join([*whole[:2], *whole[3:]]) + signed,
        start + b"".join([whole[0], *whole]) + signed,
        raw + b"x",
    ]
    for content in (*flipped, *cut, *moved):
        bad.write_bytes(content)
        with pytest.raises((BundleBroken, BundleKeyRefused)):
            await nagaya.bundles.import_(bad, WORD, tenant_id="bolt")
        assert await missing(nagaya, "bolt")


async def test_who_signs_an_altered_bundle_anew_is_refused_and_leaves_nothing(nagaya: Nagaya, tmp_path: Path):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from nagaya.lifecycle.bundle_format import begun, signature

    await furnish(nagaya, "acme", CANARY, chats=1)
    await nagaya.bundles.export("acme", tmp_path / "file", WORD)
    header, frames, _ = _parts_of(tmp_path / "file")
    stranger = Ed25519PrivateKey.generate()
    for signer, kept in ((stranger.public_key().public_bytes_raw(), frames), (None, frames[1:])):
        if signer is not None:
            header.signer = signer
        start = header_bytes(header)
        progress = begun(start)
        for frame in kept:
            progress = progress.past(frame.raw)
        content = start + b"".join(frame.raw for frame in kept) + signature(stranger, progress)
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(BundleBroken):
            await nagaya.bundles.import_(tmp_path / "bad", WORD, tenant_id="bolt")
        assert await missing(nagaya, "bolt")
        assert not (tmp_path / "data" / "tenants" / "bolt").exists()


async def test_a_tenant_that_is_there_is_never_written_over(nagaya: Nagaya, tmp_path: Path):
    await furnish(nagaya, "acme", CANARY)
    await nagaya.bundles.export("acme", tmp_path / "file", WORD)
    before = await everything(nagaya, "acme")
    with pytest.raises(TenantExists):
        await nagaya.bundles.import_(tmp_path / "file", WORD)
    assert await everything(nagaya, "acme") == before
    with pytest.raises(BundleInTheWay):
        await nagaya.bundles.export("acme", tmp_path / "file", WORD)
    with pytest.raises(BundleNotBegun):
        await nagaya.bundles.resume("acme", tmp_path / "file")


class Ended(BaseException):
    """Stands for the end of the process: nothing that would be undone is undone."""


@pytest.mark.parametrize("after", [0, 1, 5, 12])
async def test_an_export_that_was_interrupted_goes_on_after_its_last_whole_frame(
    nagaya: Nagaya, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
):
    await furnish(nagaya, "acme", CANARY)
    file = tmp_path / "file"
    monkeypatch.setattr(bundle_export, "_FRAME_BYTES", 1)
    pieces = bundle_export.BundleExport.pieces

    async def ends(self, *arguments: Any, **named: Any) -> AsyncIterator[bytes]:
        written = 0
        async for piece in pieces(self, *arguments, **named):
            if written == after:
                yield b"\0\0\1\0\0half a frame"
                raise Ended
            written += 1
            yield piece

    with monkeypatch.context() as patched, pytest.raises(Ended):
        patched.setattr(bundle_export.BundleExport, "pieces", ends)
        await nagaya.bundles.export("acme", file, X25519PrivateKey.generate().public_key())
    with pytest.raises(BundleBroken):
        await nagaya.bundles.import_(file, WORD, tenant_id="bolt")
    file.unlink()
    with monkeypatch.context() as patched, pytest.raises(Ended):
        patched.setattr(bundle_export.BundleExport, "pieces", ends)
        await nagaya.bundles.export("acme", file, WORD)
    await nagaya.bundles.resume("acme", file)
    await nagaya.bundles.import_(file, WORD, tenant_id="bolt")
    assert await everything(nagaya, "bolt") == await everything(nagaya, "acme")


async def test_an_export_that_is_being_written_is_not_gone_on_with(
    nagaya: Nagaya, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await furnish(nagaya, "acme", CANARY)
    monkeypatch.setattr(bundle_export, "_FRAME_BYTES", 1)
    pieces = bundle_export.BundleExport.pieces
    is_writing, may_go_on = asyncio.Event(), asyncio.Event()

    async def waits(self, *arguments: Any, **named: Any) -> AsyncIterator[bytes]:
        async for piece in pieces(self, *arguments, **named):
            yield piece
            is_writing.set()
            await may_go_on.wait()

    with monkeypatch.context() as patched:
        patched.setattr(bundle_export.BundleExport, "pieces", waits)
        exporting = asyncio.create_task(nagaya.bundles.export("acme", tmp_path / "file", WORD))
        await asyncio.wait_for(is_writing.wait(), 30)
    try:
        with pytest.raises(BundleBusy):
            await nagaya.bundles.resume("acme", tmp_path / "file")
    finally:
        # What the two would write from here on is not the same.
        parts = await TenantParts.open(nagaya, await nagaya.registry.tenant("acme"))
        await (await parts.blobs()).delete("files/one")
        await parts.close()
        may_go_on.set()
        await exporting
        await nagaya.bundles.import_(tmp_path / "file", WORD, tenant_id="bolt")


async def test_an_export_begun_while_its_tenant_is_deleted_leaves_no_key(
    nagaya: Nagaya, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await furnish(nagaya, "acme", CANARY)
    unfinished = nagaya.bundles._unfinished
    keep = unfinished.keep

    async def late(*arguments: Any) -> None:
        await nagaya.tenants.delete("acme")
        await keep(*arguments)

    monkeypatch.setattr(unfinished, "keep", late)
    with pytest.raises(KeyDestroyed):
        await nagaya.bundles.export("acme", tmp_path / "file", WORD)
    assert await nagaya.bundles._platform.query(Partition("bundle", "unfinished"), limit=1) == []
    assert not (tmp_path / "file").exists()


async def test_a_file_system_without_locks_takes_an_export(
    nagaya: Nagaya, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def knows_none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    await furnish(nagaya, "acme", CANARY)
    with monkeypatch.context() as patched:
        patched.setattr(bundles, "fcntl", SimpleNamespace(flock=knows_none, LOCK_EX=2, LOCK_NB=4))
        await nagaya.bundles.export("acme", tmp_path / "file", WORD)
    await nagaya.bundles.import_(tmp_path / "file", WORD, tenant_id="bolt")


def test_a_file_that_cannot_be_held_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    handles: list[Any] = []

    def is_held(handle: Any, _: int) -> None:
        handles.append(handle)
        raise BlockingIOError

    monkeypatch.setattr(bundles, "fcntl", SimpleNamespace(flock=is_held, LOCK_EX=2, LOCK_NB=4))
    with pytest.raises(BundleBusy):
        bundles._made(tmp_path / "file", b"header")
    assert handles[0].closed


@pytest.mark.parametrize("after", [0, 2])
async def test_an_import_that_was_interrupted_goes_on_and_is_not_visible_before(
    nagaya: Nagaya, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
):
    await furnish(nagaya, "acme", CANARY)
    await nagaya.bundles.export("acme", tmp_path / "file", WORD)
    put_all = bundle_import._put_all
    done = 0

    async def ends(room, batch) -> None:
        nonlocal done
        if done == after:
            await asyncio.Event().wait()
        done += 1
        await put_all(room, batch)

    async def kept(tenant_id: str, token: bytes) -> bool:
        return False

    with monkeypatch.context() as patched:
        # As if the process had ended: nobody undoes what was begun.
        patched.setattr(bundle_import, "_put_all", ends)
        patched.setattr(nagaya.registry, "give_up_onboarding", kept)
        importing = asyncio.ensure_future(nagaya.bundles.import_(tmp_path / "file", WORD, tenant_id="bolt"))
        while done < after or (await asyncio.sleep(0.05)) or await missing(nagaya, "bolt"):
            await asyncio.sleep(0.02)
        importing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await importing
    assert (await nagaya.registry.tenant("bolt")).state is TenantState.ONBOARDING
    with pytest.raises(NagayaError):
        await nagaya.enter(await nagaya.tenants.mint("bolt", "mio"))
    await nagaya.bundles.export("acme", tmp_path / "another", WORD)
    with pytest.raises(TenantExists):
        # Only the very bundle it was begun from goes on.
        await nagaya.bundles.import_(tmp_path / "another", WORD, tenant_id="bolt")
    await nagaya.bundles.import_(tmp_path / "file", WORD, tenant_id="bolt")
    assert await everything(nagaya, "bolt") == await everything(nagaya, "acme")


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(
        st.tuples(st.sampled_from(["mio", "tom"]), st.lists(st.text(min_size=1, max_size=40), max_size=6)), max_size=4
    )
)
async def test_whatever_was_said_comes_back_in_its_order(tmp_path_factory, chats):
    folder = tmp_path_factory.mktemp("bundles")
    async with Nagaya.open(settings=Settings(data=str(folder / "data"))) as nagaya:
        await nagaya.tenants.create("acme", name="Acme")
        for user, said in chats:
            async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("acme", user))) as inside:
                chat = await inside.conversations.create()
                for text in said:
                    await inside.conversations.append(chat.id, Message.user(text))
        await nagaya.bundles.export("acme", folder / "file", WORD)
        await nagaya.bundles.import_(folder / "file", WORD, tenant_id="bolt")
        for user in ("mio", "tom"):
            assert await texts(nagaya, "bolt", user) == await texts(nagaya, "acme", user)
        assert await everything(nagaya, "bolt") == await everything(nagaya, "acme")
