import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as some

from nagaya.errors import CommitmentBroken, SealBroken
from nagaya.keys.tenant_key import DerivedKey
from nagaya.records.envelope import OVERHEAD_BYTES, PartitionCipher, aes_256_gcm, key_version
from nagaya.records.sealer import nonces

KEY = DerivedKey(bytes(range(32)), bytes(range(28)))
PLACE = ("acme", "conversation", "conv_1")
NONCE = b"nonce-nonce-"


def cipher(
    derived: DerivedKey = KEY, version: int = 1, place: tuple[str, ...] = PLACE, schema: int = 1
) -> PartitionCipher:
    return PartitionCipher(derived, version, *place, schema=schema)


def corpus(name: str) -> Any:
    folder = Path(os.environ.get("NAGAYA_CORPORA", Path(__file__).parents[4] / "shared" / "corpora"))
    path = folder / "wycheproof" / name
    if not path.exists():
        if os.environ.get("NAGAYA_TEST_ALL") == "1":
            pytest.fail(f"the public corpus wycheproof/{name} is not there")
        pytest.skip(f"the public corpus wycheproof/{name} is not there")
    return json.loads(path.read_text("utf-8"))


def vectors() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for group in corpus("aes_gcm_test.json")["testGroups"]:
        for case in group["tests"]:
            yield group, case


def test_wycheproof_aes_gcm() -> None:
    opened = refused = 0
    for group, case in vectors():
        key, iv, aad, msg, ct, tag = (bytes.fromhex(case[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag"))
        if group["keySize"] != 256:
            with pytest.raises(SealBroken):
                aes_256_gcm(key)
            refused += 1
        # AES-128 and -192 are no suite of ours; their vectors still check the primitive that suite 1 stands on.
        primitive = aes_256_gcm(key) if group["keySize"] == 256 else AESGCM(key)
        if group["ivSize"] != 96:
            continue
        if case["result"] == "valid":
            assert primitive.encrypt(iv, msg, aad) == ct + tag, case["tcId"]
            assert primitive.decrypt(iv, ct + tag, aad) == msg, case["tcId"]
            opened += 1
        else:
            with pytest.raises(InvalidTag):
                primitive.decrypt(iv, ct + tag, aad)
            refused += 1
    assert opened > 90
    assert refused > 150


def test_wycheproof_vectors_with_another_nonce_length_open_in_no_envelope() -> None:
    tried = 0
    for group, case in vectors():
        if group["keySize"] == 256 and group["ivSize"] != 96:
            key, iv, ct, tag = (bytes.fromhex(case[name]) for name in ("key", "iv", "ct", "tag"))
            vector = cipher(DerivedKey(key, KEY.commitment))
            with pytest.raises(SealBroken):
                vector.open(b"sort", 1, vector.header + iv + KEY.commitment + ct + tag)
            tried += 1
    assert tried > 30


def test_an_envelope_is_63_bytes_over_the_body_in_the_agreed_order() -> None:
    sealed = cipher(version=0x01020304).seal(b"sort", 1, b"body", NONCE)
    assert len(sealed) == len(b"body") + OVERHEAD_BYTES
    assert OVERHEAD_BYTES == 63
    assert sealed[:47] == b"Ng\x01\x01\x02\x03\x04" + NONCE + KEY.commitment
    assert key_version(sealed) == 0x01020304


@given(some.binary(max_size=300), some.binary(min_size=1, max_size=200), some.integers(0, 2**63))
def test_what_was_sealed_opens_at_its_place(body: bytes, sort: bytes, revision: int) -> None:
    assert cipher().open(sort, revision, cipher().seal(sort, revision, body, os.urandom(12))) == body


@given(some.binary(max_size=200))
def test_whatever_else_a_store_holds_does_not_open(row: bytes) -> None:
    with pytest.raises(SealBroken):
        cipher().open(b"sort", 1, row)


def test_every_flipped_bit_of_every_byte_breaks_the_seal() -> None:
    sealed = cipher().seal(b"sort", 1, b"The roof is leaking.", NONCE)
    for place in range(len(sealed)):
        for bit in range(8):
            broken = sealed[:place] + bytes([sealed[place] ^ 1 << bit]) + sealed[place + 1 :]
            with pytest.raises(SealBroken):
                cipher().open(b"sort", 1, broken)


def test_every_truncation_and_any_addition_breaks_the_seal() -> None:
    sealed = cipher().seal(b"sort", 1, b"The roof is leaking.", NONCE)
    for length in range(len(sealed)):
        for broken in (sealed[:length], sealed[length + 1 :]):
            with pytest.raises(SealBroken):
                cipher().open(b"sort", 1, broken)
    with pytest.raises(SealBroken):
        cipher().open(b"sort", 1, sealed + b"\0")


@pytest.mark.parametrize(
    "other",
    [
        cipher(place=("other", "conversation", "conv_1")),
        cipher(place=("acme", "memory", "conv_1")),
        cipher(place=("acme", "conversation", "conv_2")),
        cipher(place=("acme", "conversatio", "nconv_1")),
        cipher(schema=2),
        cipher(version=2),
    ],
    ids=["tenant", "collection", "partition", "joined", "schema", "version"],
)
def test_the_same_key_does_not_open_at_another_place(other: PartitionCipher) -> None:
    sealed = cipher().seal(b"sort", 1, b"body", NONCE)
    with pytest.raises(SealBroken):
        other.open(b"sort", 1, sealed)
    # The version in the header changed to match: it is authenticated, so it does not help.
    with pytest.raises(SealBroken):
        other.open(b"sort", 1, other.header + sealed[len(other.header) :])


@pytest.mark.parametrize(("sort", "revision"), [(b"sorT", 1), (b"sor", 1), (b"sort\0", 1), (b"sort", 2), (b"sort", 0)])
def test_another_record_id_or_revision_does_not_open(sort: bytes, revision: int) -> None:
    with pytest.raises(SealBroken):
        cipher().open(sort, revision, cipher().seal(b"sort", 1, b"body", NONCE))


@pytest.mark.parametrize("suite", [0, 2, 255])
def test_an_unknown_or_older_suite_is_refused(suite: int) -> None:
    sealed = cipher().seal(b"sort", 1, b"body", NONCE)
    downgraded = sealed[:2] + bytes([suite]) + sealed[3:]
    with pytest.raises(SealBroken):
        key_version(downgraded)
    with pytest.raises(SealBroken):
        cipher().open(b"sort", 1, downgraded)


@pytest.mark.parametrize("row", [b"", b"Ng", b'{"role":"user","content":"plain"}' * 4, b"\0" * 100])
def test_a_plaintext_or_foreign_row_names_no_key(row: bytes) -> None:
    with pytest.raises(SealBroken):
        key_version(row)


def test_a_key_of_another_length_makes_no_cipher() -> None:
    for length in (0, 16, 24, 31, 33):
        with pytest.raises(SealBroken):
            cipher(DerivedKey(b"k" * length, KEY.commitment))


def test_nonces_never_repeat_in_a_hundred_thousand_seals() -> None:
    drawn = [nonce for _ in range(1000) for nonce in nonces(100)]
    assert len(set(drawn)) == 100_000
    assert {len(nonce) for nonce in drawn} == {12}


# --- a ciphertext that opens under two keys -------------------------------------------------------------------------

_POLYNOMIAL = 0xE1 << 120


def _times(one: int, other: int) -> int:
    """The product in GCM's field of 2¹²⁸ elements, bits reflected as GCM has them."""
    product = 0
    for bit in range(127, -1, -1):
        if other >> bit & 1:
            product ^= one
        one = one >> 1 ^ (_POLYNOMIAL if one & 1 else 0)
    return product


def _power(base: int, exponent: int) -> int:
    result = 1 << 127
    while exponent:
        if exponent & 1:
            result = _times(result, base)
        base = _times(base, base)
        exponent >>= 1
    return result


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def _hash_key_and_mask(key: bytes, nonce: bytes) -> tuple[int, int]:
    """GHASH's key and the tag's mask."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return _number(block.update(b"\0" * 16)), _number(block.update(nonce + b"\0\0\0\1"))


def two_key_ciphertext(first: bytes, second: bytes, nonce: bytes, aad: bytes) -> bytes:
    """Two blocks and a tag that AES-GCM accepts under both keys: the second block solves one linear equation."""
    padded = aad + b"\0" * (-len(aad) % 16)
    free = os.urandom(16)
    lengths = (len(aad) * 8).to_bytes(8, "big") + (32 * 8).to_bytes(8, "big")
    blocks = [padded[at : at + 16] for at in range(0, len(padded), 16)] + [free, b"\0" * 16, lengths]
    sums, squares = [], []
    for key in (first, second):
        hash_key, mask = _hash_key_and_mask(key, nonce)
        total = mask
        for place, block in enumerate(blocks):
            total ^= _times(_number(block), _power(hash_key, len(blocks) - place))
        sums.append(total)
        squares.append(_power(hash_key, 2))
    solved = _times(sums[0] ^ sums[1], _power(squares[0] ^ squares[1], 2**128 - 2))
    tag = sums[0] ^ _times(solved, squares[0])
    return free + solved.to_bytes(16, "big") + tag.to_bytes(16, "big")


def test_a_ciphertext_that_opens_under_two_keys_meets_the_commitment() -> None:
    mine, foreign = DerivedKey(os.urandom(32), os.urandom(28)), DerivedKey(os.urandom(32), os.urandom(28))
    context = cipher(mine)._context + (1).to_bytes(8, "big") + (4).to_bytes(4, "big") + b"sort"
    crafted = two_key_ciphertext(mine.key, foreign.key, NONCE, context)
    assert AESGCM(mine.key).decrypt(NONCE, crafted, context) != AESGCM(foreign.key).decrypt(NONCE, crafted, context)
    envelope = cipher(mine).header + NONCE + mine.commitment + crafted
    assert len(cipher(mine).open(b"sort", 1, envelope)) == 32
    with pytest.raises(CommitmentBroken):
        cipher(foreign).open(b"sort", 1, envelope)
