"""Bundles made by whoever has the key to make one: each is refused in words, and nothing of it is left."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from nagaya.context.items import Message
from nagaya.errors import BundleBroken, BundleKeyRefused, BundleSignerUnknown, InvalidValue, NagayaError, NotFound
from nagaya.lifecycle.bundle_entries import BlobPart, Entry, RecordEntry, Tallies, Tally, Trailer, packed, unpacked
from nagaya.lifecycle.bundle_format import (
    MAGIC,
    BundleHeader,
    FrameCipher,
    begun,
    bound_to,
    commitment_of,
    frames_of,
    header_bytes,
    locked,
    read_header,
    signature,
    unlocked,
)
from nagaya.settings import Settings
from nagaya.wiring import Nagaya

READER, SIGNER = X25519PrivateKey.generate(), Ed25519PrivateKey.generate()
SIGNED_BY = SIGNER.public_key().public_bytes_raw().hex()
INDEX = bytes(32) + b"acme"
SEAL = "5e" * 16


def record(name: str, sort: bytes = b"1", body: bytes = b"a body", collection: str = "note") -> RecordEntry:
    return RecordEntry(collection, name, sort, body)


def blob(name: str, *parts: bytes, seal: str = SEAL) -> list[BlobPart]:
    starts = [sum(map(len, parts[:at])) for at in range(len(parts))]
    last = len(parts) - 1
    return [
        BlobPart(name, seal, start, data, at == last)
        for at, (start, data) in enumerate(zip(starts, parts, strict=True))
    ]


def trailer(*entries: Entry, **fields: Any) -> Trailer:
    """What an honest export says at the end of these entries."""
    tallies = Tallies()
    for entry in entries:
        assert not isinstance(entry, Trailer)
        tallies.add(entry)
    return msgspec.structs.replace(Trailer(tallies.kinds, {}, {}), **fields)


def honest(*entries: Entry, **fields: Any) -> list[list[Any]]:
    """Frames of these entries, and the last."""
    return [list(entries), [trailer(*entries, **fields)]]


GOOD = [record("one"), record("two", b"1"), record("two", b"2"), *blob("files/one", b"abc", b"def")]


class Forger:
    """Makes bundles that a reader with ``READER`` opens, signed by ``SIGNER``; what is in them is up to the test."""

    def __init__(self, **header: Any) -> None:
        self.content_key = os.urandom(32)
        said = {
            "bundle": os.urandom(16).hex(), "tenant": "acme", "created_at_us": 1_800_000_000_000_000,
            "signer": SIGNER.public_key().public_bytes_raw(), "commitment": commitment_of(self.content_key),
            "lock": locked(self.content_key, READER.public_key()),
        }  # fmt: skip
        self.header = header_bytes(BundleHeader(**said | header))
        self.cipher = FrameCipher(self.content_key, bound_to(self.header))

    def frames(self, bodies: list[list[Any]]) -> list[bytes]:
        last = len(bodies) - 1
        return [self.cipher.seal(at, msgspec.msgpack.encode(body), last=at == last) for at, body in enumerate(bodies)]

    def signed(self, frames: list[bytes], signer: Ed25519PrivateKey = SIGNER) -> bytes:
        progress = begun(self.header)
        for frame in frames:
            progress = progress.past(frame)
        return self.header + b"".join(frames) + signature(signer, progress)


def forged(bodies: list[list[Any]], **header: Any) -> bytes:
    forger = Forger(**header)
    return forger.signed(forger.frames(bodies))


@pytest.fixture
async def nagaya(tmp_path: Path) -> AsyncIterator[Nagaya]:
    async with Nagaya.open(settings=Settings(data=str(tmp_path / "data"))) as opened:
        await opened.tenants.create("acme", name="Acme")
        yield opened


def _files(data: Path) -> set[str]:
    """The files of the platform's folder; of a database the main one. The local key service keeps the half of a key that it
    once made under a name: nothing is sealed under it, and who imports again under that name goes on with it."""
    found = {path.relative_to(data) for path in data.rglob("*") if path.is_file()}
    return {
        str(path) for path in found if not path.name.endswith(("-wal", "-shm")) and path.parts[:2] != ("keys", "keys")
    }


@pytest.fixture
def refuses(nagaya: Nagaya, tmp_path: Path) -> Callable[..., Any]:
    async def refused(
        content: bytes, reason: str | None, *, kind: type[NagayaError] = BundleBroken, **asked: Any
    ) -> None:
        """The bundle is refused for that reason, in both languages, and leaves nothing behind."""
        file = tmp_path / "bad"
        file.write_bytes(content)
        before = _files(tmp_path / "data")
        with pytest.raises(kind) as caught:
            await nagaya.bundles.import_(file, READER, **{"tenant_id": "bolt", "signer": SIGNED_BY} | asked)
        if reason is not None:
            assert caught.value.reason == reason, caught.value
            for words, language in zip(caught.value.PROBLEMS[reason], ("en", "ja"), strict=True):
                assert words in caught.value.message(language)
        with pytest.raises(NotFound):
            await nagaya.registry.tenant("bolt")
        assert not await nagaya.registry.key_versions("bolt")
        assert _files(tmp_path / "data") == before

    return refused


async def test_what_the_forger_makes_is_taken_where_it_is_honest(nagaya: Nagaya, tmp_path: Path):
    (tmp_path / "good").write_bytes(forged(honest(*GOOD)))
    done = await nagaya.bundles.import_(tmp_path / "good", READER, tenant_id="bolt", signer=SIGNED_BY)
    assert done.counts == {"note": 3, "blob": 1}


@pytest.mark.parametrize("version", [2, 3, 255])
async def test_a_bundle_of_a_newer_version_says_so(refuses, version: int):
    content = forged(honest(*GOOD))
    await refuses(MAGIC[:-1] + bytes([version]) + content[len(MAGIC) :], "newer")


async def test_entries_that_only_a_newer_release_knows_say_so(refuses):
    for entry in (["x", 1], ["r", "note", "one", b"1"], {"r": 1}, 7, ["b", "files/one", SEAL, "0", b"", True]):
        await refuses(forged([[entry], [trailer()]]), "newer")


async def test_what_is_no_bundle_says_so(refuses):
    for content in (
        b"",
        b"NGBUNDL",
        MAGIC[:-1] + b"\0" + bytes(500),
        b"PK\x03\x04" + bytes(500),
        MAGIC + b"\xff" * 500,
    ):
        await refuses(content, "none")


async def test_a_bundle_that_ends_too_soon_says_so(refuses):
    content = forged(honest(*GOOD))
    header = len(Forger().header)
    for end in (len(MAGIC), len(MAGIC) + 4, header // 2, header, header + 3, len(content) - 65, len(content) - 1):
        await refuses(content[:end], "cut")


async def test_a_header_that_no_export_writes_is_refused(refuses):
    for changed in (
        {"bundle": "\x1b[2J"}, {"bundle": "AB" * 16}, {"bundle": "ab" * 16 + "\n"}, {"created_at_us": -1},
    ):  # fmt: skip
        await refuses(forged(honest(*GOOD), **changed), "altered")


async def test_records_out_of_their_order_are_refused(refuses):
    one, two, three = record("one"), record("two", b"1"), record("two", b"2")
    for order in (
        (two, one, three),
        (one, three, two),
        (one, one),
        (one, two, one),
        (two, record("b", collection="a")),
    ):
        await refuses(forged(honest(*order)), "order")
        # Each in a frame of its own is no better.
        await refuses(forged([*([entry] for entry in order), [trailer(*order)]]), "order")


async def test_parts_of_a_blob_out_of_their_order_are_refused(refuses):
    first, middle, last = blob("files/one", b"ab", b"cd", b"ef")
    other = blob("files/two", b"xy", b"z")
    for order in (
        (first, last), (middle, last), (last,), (first, first, middle, last), (first, middle), (first, record("one"), middle, last),
        (first, other[0], middle, last, other[1]), (*blob("files/one", b"whole"), record("one")), (other[0], last),
        (BlobPart("files/one", SEAL, -1, b"ab", True),), (first, msgspec.structs.replace(middle, seal="6f" * 16), last),
    ):  # fmt: skip
        whole = [entry for entry in order if isinstance(entry, RecordEntry)]
        await refuses(forged([list(order), [trailer(*whole, kinds={"blob": Tally(1)})]]), "order")


async def test_a_trailer_in_the_wrong_place_is_refused(refuses):
    end = trailer(*GOOD)
    await refuses(forged([[*GOOD, end], [end]]), "order")
    await refuses(forged([[*GOOD], [end, end]]), "order")
    await refuses(forged([[*GOOD[1:]], [end, GOOD[0]]]), "order")


async def test_a_bundle_whose_counts_lie_is_refused(refuses):
    for fields in (
        {"kinds": {}}, {"kinds": trailer(*GOOD[:-1]).kinds}, {"kinds": trailer(*GOOD, record("zzz")).kinds},
        {"kinds": trailer(*GOOD).kinds | {"memory": Tally(0)}},
        {"kinds": trailer(*GOOD).kinds | {"memory": Tally(1)}},
        {"kinds": trailer(*GOOD).kinds | {"note": Tally(3)}},
        {"kinds": trailer(*GOOD).kinds | {"note": Tally(-3, trailer(*GOOD).kinds["note"].digest)}},
        {"kinds": trailer(record("one", body=b"another"), *GOOD[1:]).kinds},
    ):  # fmt: skip
        await refuses(forged(honest(*GOOD, **fields)), "count")
    await refuses(forged([GOOD, []]), "count")
    await refuses(forged([GOOD[:-1], []]), "count")
    await refuses(forged([[]]), "count")


async def test_a_blob_that_is_there_twice_is_refused(refuses):
    twice = [*blob("files/one", b"abc"), *blob("files/one", b"xyz", seal="6f" * 16)]
    await refuses(forged(honest(*twice)), "count")


async def test_places_that_lead_elsewhere_are_refused(refuses):
    for entry in (
        record("one", collection=""), record("one", collection="a/b"), record("one", collection="../up"), record("one", collection="note\n"),
        record("one", collection="N"), record(""), record("x" * 300), record("\u0436"), record("one", b""), record("one", b"s" * 201),
        *(blob(name, b"x")[0] for name in ("../../up", "/etc/passwd", "a//b", "", "a/..", "files/one\n", "x" * 600)),
        *(blob("files/one", b"x", seal=seal)[0] for seal in ("", "zz" * 16, "5e" * 15, "5E" * 16)),
    ):  # fmt: skip
        await refuses(forged(honest(entry)), "newer")


async def test_what_stays_behind_at_an_export_is_not_brought_in(refuses):
    await refuses(forged(honest(record("all", b"llm-connection", b"{}", collection="secret"))), "altered")
    for body in (b"", b"short", bytes(32), bytes(32) + b"\xff\xfe", bytes(32) + b"a" * 65, bytes(32) + b"../up"):
        await refuses(forged(honest(record("blind", b"1", body, collection="index-key"))), "altered")


async def test_names_and_settings_of_a_trailer_are_what_an_export_writes(refuses):
    for told in ({"\x1b[2J": 1}, {"secret ": 1}, {"": 1}):
        await refuses(forged(honest(*GOOD, left_out=told)), "newer")
    for told in ({"retention_days": 0}, {"restore_days": -1}, {"restore_days": None}, {"retention_days": 1 << 40}):
        await refuses(forged(honest(*GOOD, settings=told)), None, kind=InvalidValue)


async def test_settings_of_another_kind_are_not_taken_over(nagaya: Nagaya, tmp_path: Path):
    told = {"requests_per_minute": 1, "max_token_lifetime_s": 99, "retention_days": 30}
    (tmp_path / "file").write_bytes(forged(honest(*GOOD, settings=told)))
    await nagaya.bundles.import_(tmp_path / "file", READER, tenant_id="bolt", signer=SIGNED_BY)
    made, acme = await nagaya.registry.tenant("bolt"), await nagaya.registry.tenant("acme")
    assert made.retention_days == 30
    assert made.requests_per_minute == acme.requests_per_minute
    assert made.max_token_lifetime_s == acme.max_token_lifetime_s


async def test_who_signed_it_is_looked_at(refuses):
    content = forged(honest(*GOOD))
    stranger = Ed25519PrivateKey.generate()
    named = stranger.public_key().public_bytes_raw().hex()
    for signer in (None, named, ""):
        await refuses(content, None, kind=BundleSignerUnknown, signer=signer)
    forger = Forger()
    await refuses(forger.signed(forger.frames(honest(*GOOD)), stranger), "altered")
    for signer in (b"", bytes(31), bytes(32)):
        await refuses(forged(honest(*GOOD), signer=signer), "altered", signer=signer.hex())


async def test_a_bundle_for_another_tenants_key_opens_with_none_of_ours(refuses):
    theirs = X25519PrivateKey.generate().public_key()
    forger = Forger()
    lock = locked(forger.content_key, theirs)
    await refuses(forged(honest(*GOOD), lock=lock), "other", kind=BundleKeyRefused)
    # Said to be for us though it was locked for them, and with a key that the file does not commit to.
    ours = READER.public_key().public_bytes_raw()
    lied = msgspec.structs.replace(lock, recipient=ours)
    await refuses(forged(honest(*GOOD), lock=lied), "other", kind=BundleKeyRefused)
    await refuses(
        forged(honest(*GOOD), lock=locked(os.urandom(32), READER.public_key())), "other", kind=BundleKeyRefused
    )
    # Points of small order agree on nothing.
    weak = msgspec.structs.replace(lied, ephemeral=bytes(32))
    await refuses(forged(honest(*GOOD), lock=weak), "other", kind=BundleKeyRefused)


async def test_frames_of_another_tenants_bundle_do_not_open_under_this_ones_header(
    nagaya: Nagaya, refuses, tmp_path: Path
):
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))) as inside:
        chat = await inside.conversations.create()
        await inside.conversations.append(chat.id, Message.user("of acme"))
    await nagaya.bundles.export("acme", tmp_path / "acme", READER.public_key())
    with (tmp_path / "acme").open("rb") as handle:
        header, raw = read_header(handle)
        theirs = list(frames_of(handle))
    cipher = FrameCipher(unlocked(header, READER), bound_to(raw))
    assert any(isinstance(entry, RecordEntry) for entry in unpacked(cipher.open(0, theirs[0])))
    forger = Forger()
    own = forger.frames(honest(*GOOD))
    await refuses(forger.signed([theirs[0].raw, own[1]]), "altered")
    await refuses(forger.signed([frame.raw for frame in theirs]), "altered")


def test_an_honest_frame_is_as_an_export_writes_it():
    assert unpacked(packed(GOOD)) == GOOD
    assert unpacked(msgspec.msgpack.encode(GOOD)) == GOOD
