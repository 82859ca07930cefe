"""Messages that ask for jobs, and whose word they are.

A queue may belong to one tenant: then whoever may send to it speaks for that tenant and for no other. Over a queue that
several share, a message is signed under the tenant's own key; the queue, and whoever else may send to it, is trusted
with nothing.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Final

import msgspec

from nagaya.errors import JobRefused
from nagaya.keys.derivation import length_prefixed
from nagaya.tenancy.names import check_address

MAX_MESSAGE: Final = 16 * 1024
MAX_MESSAGE_AGE_US: Final = 4 * 86_400 * 1_000_000
"""Less than what a dedup text lasts, so a message that is sent again is always known. SQS keeps messages 4 days."""

_AHEAD_US: Final = 300 * 1_000_000
_CODE: Final = 64
_PURPOSE: Final = b"nagaya message v1"


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a message asks for."""

    kind: str
    arguments: dict[str, str | int | bool] = {}


class SignedOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a message over a shared queue asks for. ``tenant`` is a tenant's id or a workspace's address. ``id`` is the
    producer's: two messages with one id are one job."""

    tenant: str
    id: str
    sent_at_us: int
    kind: str
    arguments: dict[str, str | int | bool] = {}


def read_order(text: str) -> Order:
    """An order from a tenant's own queue. Raises ``JobRefused``."""
    if len(text) > MAX_MESSAGE:
        raise JobRefused(reason="the message is too long")
    try:
        return msgspec.json.decode(text, type=Order)
    except (msgspec.DecodeError, UnicodeError):
        raise JobRefused(reason="the message is not understood") from None


def sign_order(key: bytes, order: SignedOrder) -> str:
    """The message for a shared queue. ``key`` is the tenant's: :meth:`nagaya.jobs.record.JobSigner.tenant_key`."""
    body = msgspec.json.encode(order)
    return _code(key, body) + body.decode("utf-8")


def claimed_tenant(text: str) -> str:
    """The tenant that a signed message names: nothing is proved yet, it only tells whose key decides. Raises
    ``JobRefused``."""
    return _claimed(text).tenant


def read_signed_order(key: bytes, text: str, now_us: int) -> SignedOrder:
    """The order, if it is signed under ``key`` and not too old. Raises ``JobRefused``."""
    order = _claimed(text)
    code = _code(key, text[_CODE:].encode("utf-8"))
    if not hmac.compare_digest(code.encode(), text[:_CODE].encode("utf-8", "surrogatepass")):
        raise JobRefused(reason="the message is not signed by its tenant")
    if not -MAX_MESSAGE_AGE_US < order.sent_at_us - now_us < _AHEAD_US:
        raise JobRefused(reason="the message is too old")
    return order


def _claimed(text: str) -> SignedOrder:
    if not _CODE < len(text) <= MAX_MESSAGE:
        raise JobRefused(reason="the message is not understood")
    try:
        order = msgspec.json.decode(text[_CODE:], type=SignedOrder)
        check_address(order.tenant)
    except (msgspec.DecodeError, UnicodeError):
        raise JobRefused(reason="the message is not understood") from None
    return order


def _code(key: bytes, body: bytes) -> str:
    return hmac.digest(key, length_prefixed(_PURPOSE, body), sha256).hex()
