"""``GET /v1/export``: everything in the caller's room as a bundle, for its administrator, resumable."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from nagaya.errors import InvalidValue, NotFound
from nagaya.lifecycle.bundle_format import KEY_BYTES, BundleRecipient, Passphrase
from nagaya.server.calls import Call, Stream
from nagaya.tenancy.principal import Role, Scope

PASSPHRASE: Final = b"x-bundle-passphrase"
"""The passphrase that is to open the bundle, in UTF-8 and Base64."""
MARK: Final = b"x-bundle-mark"
"""The last mark of what has arrived, in Base64: the answer is what follows it."""
AT: Final = b"x-bundle-at"
"""At which byte of the bundle the answer begins."""


async def export(call: Call) -> Stream:
    """Everything of the caller's tenant (or workspace) as an encrypted, signed bundle. For its administrators."""
    context = await call.admit(Scope.ADMIN, Role.TENANT_ADMIN)
    try:
        recipient = call.query({"recipient": ""})["recipient"]
        passphrase, mark = call.header(PASSPHRASE), call.header(MARK)
        if [bool(recipient), passphrase is not None, mark is not None].count(True) != 1:
            detail = "say for whom: recipient, or one of the headers X-Bundle-Passphrase and X-Bundle-Mark"
            raise InvalidValue(param="recipient", at="recipient", detail=detail)
        call.open_stream(context)
        bundles = call.nagaya.bundles
        if mark is not None:
            outgoing = await bundles.send_on(context.session, _mark(mark))
        else:
            outgoing = await bundles.send(context.session, _recipient(recipient, passphrase))
    except BaseException:
        await context.close()
        raise

    async def frames() -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(outgoing.pieces) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            await context.close()

    entrance, is_current = context.session.entrance, context.session.is_current
    filename = entrance.tenant.address.replace("/", "-")
    headers = (
        (b"content-type", b"application/octet-stream"),
        (b"content-disposition", f'attachment; filename="{filename}.bundle"'.encode()),
        (AT, b"%d" % outgoing.at),
    )
    return Stream(
        frames(), lambda: is_current(entrance), lambda: None, headers=headers, ends_with_reader=True, framed=False
    )


def _recipient(recipient: str, passphrase: str | None) -> BundleRecipient:
    if passphrase is None:
        try:
            key = bytes.fromhex(recipient)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES or recipient != key.hex():
            detail = "expected an X25519 public key in 64 hex digits"
            raise InvalidValue(param="recipient", at="recipient", detail=detail)
        return X25519PublicKey.from_public_bytes(key)
    try:
        return Passphrase(base64.b64decode(passphrase, validate=True).decode())
    except (binascii.Error, UnicodeError):
        raise InvalidValue(param="passphrase", at="X-Bundle-Passphrase", detail="expected Base64 of UTF-8") from None


def _mark(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NotFound("export") from None
