"""The file of a portable bundle: header, sealed frames, signature. Nothing here knows what lies in a frame.

::

    "NGBUNDLE" 1   length  header (JSON)   frame 0   frame 1   …   last frame   Ed25519 signature
    9              4       length                                               64

A frame is its length, its kind, a nonce and an AES-256-GCM ciphertext bound to the header, to its number and to its
kind (STREAM: Hoang, Reyhanitabar, Rogaway and Vizár, 2015). The signature is over a SHA-256 chain of everything before
it, so it can be checked without any key. Methods block on the disk.

Between the frames of a bundle that a server sent lie marks (kind 2). A mark holds nothing of the tenant: it is what the
server needs to go on after it, sealed for that server alone, and means nothing once the bundle is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from struct import Struct
from typing import Annotated, BinaryIO, Final, NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from nagaya.errors import BundleBroken, BundleKeyRefused
from nagaya.keys.derivation import expand, extract, length_prefixed

MAGIC: Final = b"NGBUNDLE\x01"
"""What every bundle begins with; the last byte is the version of the format."""
KEY_BYTES: Final = 32
MIN_PASSPHRASE: Final = 12
"""Characters. The file can be tried off-line for as long as somebody has it."""
MAX_FRAME_BYTES: Final = 40 * 1024 * 1024

_MAX_HEADER_BYTES: Final = 64 * 1024
_NONCE_BYTES: Final = 12
_SIGNATURE_BYTES: Final = 64
_LENGTH: Final = Struct(">I")
_FRAME: Final = Struct(">IB")
_PLACE: Final = Struct(">QB")
_SIGNED: Final = b"nagaya bundle 1 "
_PLAIN, _LAST, _MARK = range(3)


class PassphraseLock(msgspec.Struct, tag="passphrase", forbid_unknown_fields=True):
    """The content key under a passphrase stretched by scrypt (N = 2^16, r = 8, p = 2)."""

    salt: bytes
    nonce: bytes
    wrapped: bytes


class RecipientLock(msgspec.Struct, tag="x25519", forbid_unknown_fields=True):
    """The content key for who has the private key of ``recipient``, over a key made for this file alone."""

    recipient: bytes
    ephemeral: bytes
    nonce: bytes
    wrapped: bytes


class BundleHeader(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a bundle says in clear. ``signer`` is the Ed25519 public key that its signature is checked with."""

    bundle: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    tenant: str
    created_at_us: Annotated[int, msgspec.Meta(ge=0)]
    signer: bytes
    commitment: bytes
    lock: PassphraseLock | RecipientLock


class Passphrase(NamedTuple):
    text: str


BundleRecipient = Passphrase | X25519PublicKey
"""Who is to open a bundle."""
BundleOpener = Passphrase | X25519PrivateKey
"""What opens one."""


def locked(content_key: bytes, recipient: BundleRecipient) -> PassphraseLock | RecipientLock:
    """The content key, wrapped. A passphrase takes a third of a second. Raises ``BundleKeyRefused`` for a short one."""
    nonce = os.urandom(_NONCE_BYTES)
    if isinstance(recipient, Passphrase):
        if len(recipient.text) < MIN_PASSPHRASE:
            raise BundleKeyRefused("short")
        salt = os.urandom(16)
        wrapped = AESGCM(_stretched(recipient.text, salt)).encrypt(nonce, content_key, b"")
        return PassphraseLock(salt, nonce, wrapped)
    ephemeral = X25519PrivateKey.generate()
    theirs, ours = recipient.public_bytes_raw(), ephemeral.public_key().public_bytes_raw()
    wrapping = _agreed(ephemeral, recipient, ours, theirs)
    return RecipientLock(theirs, ours, nonce, AESGCM(wrapping).encrypt(nonce, content_key, b""))


def unlocked(header: BundleHeader, opener: BundleOpener) -> bytes:
    """The content key. Raises ``BundleKeyRefused`` where the passphrase or key is another."""
    lock = header.lock
    try:
        if isinstance(lock, PassphraseLock):
            if not isinstance(opener, Passphrase):
                raise BundleKeyRefused("passphrase")
            wrapping = _stretched(opener.text, lock.salt)
        else:
            if isinstance(opener, Passphrase):
                raise BundleKeyRefused("key")
            if opener.public_key().public_bytes_raw() != lock.recipient:
                raise BundleKeyRefused("other")
            theirs = X25519PublicKey.from_public_bytes(lock.ephemeral)
            wrapping = _agreed(opener, theirs, lock.ephemeral, lock.recipient)
        content_key = AESGCM(wrapping).decrypt(lock.nonce, lock.wrapped, b"")
    except (InvalidTag, ValueError):
        raise BundleKeyRefused("other") from None
    if commitment_of(content_key) != header.commitment:
        raise BundleKeyRefused("other")
    return content_key


def commitment_of(content_key: bytes) -> bytes:
    """What a header says of its content key, so that no file opens under two."""
    return expand(extract(content_key), length_prefixed("nagaya", "bundle", "commitment"), KEY_BYTES)


def _stretched(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=KEY_BYTES, n=2**16, r=8, p=2).derive(passphrase.encode("utf-8"))


def _agreed(own: X25519PrivateKey, other: X25519PublicKey, ephemeral: bytes, recipient: bytes) -> bytes:
    info = length_prefixed("nagaya", "bundle", "recipient", ephemeral, recipient)
    return expand(extract(own.exchange(other)), info, KEY_BYTES)


def header_bytes(header: BundleHeader) -> bytes:
    """The beginning of a file."""
    raw = msgspec.json.encode(header)
    return MAGIC + _LENGTH.pack(len(raw)) + raw


def read_header(file: BinaryIO) -> tuple[BundleHeader, bytes]:
    """The header at the beginning of a file, and its bytes as they lie there. Raises ``BundleBroken``."""
    file.seek(0)
    start = file.read(len(MAGIC) + _LENGTH.size)
    if not start.startswith(MAGIC):
        is_newer = start.startswith(MAGIC[:-1]) and start[: len(MAGIC)] > MAGIC
        raise BundleBroken("newer" if is_newer else "none")
    if len(start) < len(MAGIC) + _LENGTH.size:
        raise BundleBroken("cut")
    (length,) = _LENGTH.unpack_from(start, len(MAGIC))
    if length > _MAX_HEADER_BYTES:
        raise BundleBroken("none")
    raw = _exactly(file, length)
    try:
        header = msgspec.json.decode(raw, type=BundleHeader)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BundleBroken("altered") from None
    return header, start + raw


class Frame(NamedTuple):
    """A frame as it lies in the file."""

    raw: bytes
    kind: int

    @property
    def is_last(self) -> bool:
        return self.kind == _LAST

    @property
    def mark(self) -> bytes | None:
        """What a mark holds; None for any other frame."""
        return self.raw[_FRAME.size :] if self.kind == _MARK else None


class Progress(NamedTuple):
    """How far a file is written or read: bytes, frames, and the chain over them."""

    at: int
    frames: int
    chain: bytes

    def past(self, raw: bytes) -> Progress:
        """After one more frame."""
        return Progress(self.at + len(raw), self.frames + 1, hashlib.sha256(self.chain + raw).digest())


def begun(header: bytes) -> Progress:
    """After the header."""
    return Progress(len(header), 0, hashlib.sha256(header).digest())


def bound_to(header: bytes) -> bytes:
    """What binds frames to a header."""
    return hashlib.sha256(header).digest()


def mark_frame(mark: bytes) -> bytes:
    """A mark as it lies in the file."""
    return _FRAME.pack(len(mark), _MARK) + mark


class FrameCipher:
    """Seals and opens the frames of one bundle."""

    def __init__(self, content_key: bytes, bound: bytes) -> None:
        """``bound``: as :func:`bound_to` gives it for the header."""
        self._bound = bound
        info = length_prefixed("nagaya", "bundle", "frames", self._bound)
        self._cipher = AESGCM(expand(extract(content_key), info, KEY_BYTES))

    def seal(self, number: int, body: bytes, *, last: bool = False) -> bytes:
        """A frame as it lies in the file. Its nonce is random, so that a frame written anew after a cut is safe."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, body, self._bound + _PLACE.pack(number, last))
        return _FRAME.pack(len(sealed), last) + sealed

    def open(self, number: int, frame: Frame) -> bytes:
        """What lies in a frame. Raises ``BundleBroken`` for any but the one that was sealed for this place."""
        at = _FRAME.size + _NONCE_BYTES
        bound = self._bound + _PLACE.pack(number, frame.kind)
        try:
            return self._cipher.decrypt(frame.raw[_FRAME.size : at], frame.raw[at:], bound)
        except InvalidTag:
            raise BundleBroken("altered") from None


def frames_of(file: BinaryIO) -> Iterator[Frame]:
    """The frames from where the file stands to the last. Raises ``BundleBroken`` where it ends before that."""
    while True:
        prefix = _exactly(file, _FRAME.size)
        length, kind = _FRAME.unpack(prefix)
        if not _NONCE_BYTES < length <= MAX_FRAME_BYTES or kind > _MARK:
            raise BundleBroken("altered")
        yield Frame(prefix + _exactly(file, length), kind)
        if kind == _LAST:
            return


class Marked(NamedTuple):
    """Where a file that was cut off can be gone on with: the mark, and where what follows it begins."""

    mark: bytes
    at: int


def last_mark(file: BinaryIO) -> Marked | None:
    """The last mark that arrived whole; None where there is none. Raises ``BundleBroken`` without a header."""
    progress = begun(read_header(file)[1])
    found = None
    with contextlib.suppress(BundleBroken):
        for frame in frames_of(file):
            progress = progress.past(frame.raw)
            if frame.mark is not None:
                found = Marked(frame.mark, progress.at)
    return found


def signature(signer: Ed25519PrivateKey, progress: Progress) -> bytes:
    """What ends a file."""
    return signer.sign(_SIGNED + progress.chain)


def check_whole(file: BinaryIO) -> tuple[BundleHeader, bytes]:
    """The header of a file that is whole and was signed by its ``signer``; opens nothing. Raises ``BundleBroken``."""
    header, raw = read_header(file)
    progress = begun(raw)
    for frame in frames_of(file):
        progress = progress.past(frame.raw)
    signed = _exactly(file, _SIGNATURE_BYTES)
    if file.read(1):
        raise BundleBroken("altered")
    try:
        Ed25519PublicKey.from_public_bytes(header.signer).verify(signed, _SIGNED + progress.chain)
    except (InvalidSignature, ValueError):
        raise BundleBroken("altered") from None
    return header, raw


def _exactly(file: BinaryIO, length: int) -> bytes:
    found = file.read(length)
    if len(found) < length:
        raise BundleBroken("cut")
    return found
