"""Tenant keys wrapped by AWS KMS, in the tenant's own account or the platform's.

``awskms://KEY?region=ap-northeast-1`` names one KMS key by id, ARN or ``alias/NAME``; its owner disables and deletes it
in KMS. Every wrapped key is bound to its tenant by the encryption context, also where tenants share a KMS key.

``awskms://alias/PREFIX?region=…&owned=true`` keeps a KMS key per tenant key behind ``alias/PREFIX-NAME``; they are the
platform's own, are made when first used, and can be disabled, enabled and destroyed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from nagaya.adapters import Surroundings
from nagaya.clouds.aws import AwsAccount, flag, url_parts
from nagaya.clouds.aws_errors import AwsRefusal, Trouble
from nagaya.clouds.aws_role import ROLE_DENIED, AwsConnection
from nagaya.errors import (
    CloudCredentialsRefused,
    InvalidValue,
    KeyAccessRefused,
    KeyDestroyed,
    KeyDisabled,
    KeyMissing,
    KeyUnreachable,
    NotFound,
    PermissionMissing,
    SealBroken,
)
from nagaya.keys.driver import KEY_BYTES, KeyContext

KMS_S: Final = 5.0
"""How long one call may take with its repeats."""

MAX_WRAPPED: Final = 6144
"""Bytes of a ciphertext that Decrypt takes."""

_ARN: Final = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):(\d{12}):((?:key|alias)/[A-Za-z0-9/_-]{1,256})")
_KEY: Final = re.compile(r"[A-Za-z0-9-]{1,64}|alias/[A-Za-z0-9/_-]{1,250}")
_PREFIX: Final = re.compile(r"alias/[A-Za-z0-9/_-]{1,100}")
_NAME: Final = re.compile(r"[a-z0-9_][a-z0-9_-]{0,79}")
_DAYS: Final = range(7, 31)
_STATES: Final = {
    "Enabled": "enabled", "Updating": "enabled", "Creating": "enabled",
    "PendingDeletion": "destroyed", "PendingReplicaDeletion": "destroyed",
}  # fmt: skip
"""What KMS calls a key's state; any other is one in which it cannot be used for now."""


def kms_grants(connection: AwsConnection, region: str, key: str, room: str) -> list[dict[str, Any]]:
    """The least that a tenant's keyring needs of the tenant's KMS key, as statements of a policy."""
    condition: dict[str, Any] = {"StringEquals": {"kms:EncryptionContext:tenant": room}}
    if key.startswith("arn:") and ":key/" in key:
        resource = key
    elif "alias/" in key:
        account = key.split(":")[4] if key.startswith("arn:") else connection.account_id
        resource = f"arn:{connection.partition}:kms:{region}:{account}:key/*"
        condition["StringEquals"]["kms:RequestAlias"] = key[key.index("alias/") :]
    else:
        resource = f"arn:{connection.partition}:kms:{region}:{connection.account_id}:key/{key}"
    actions = ["kms:GenerateDataKey", "kms:Decrypt"]
    return [{"Effect": "Allow", "Action": actions, "Resource": resource, "Condition": condition}]


async def open_keys(url: str, surroundings: Surroundings) -> AwsKeys:
    """The key service at ``awskms://KEY[?region=R][&owned=true][&deletion_days=7]``.

    The region may stand in the key's ARN or in the connection secret instead. Nothing is asked of KMS yet. Raises
    ``InvalidValue``, ``RegionRefused``, ``ConnectionSecretInvalid``, ``ExternalIdRefused``.
    """
    key, options = url_parts(url, "awskms", known=frozenset({"region", "owned", "deletion_days"}))
    arn = _ARN.fullmatch(key)
    if arn is None and not _KEY.fullmatch(key):
        raise InvalidValue(at="key", detail="awskms://KEY with a key's id, ARN or alias/NAME")
    region = options.get("region", arn[1] if arn else "")
    if arn is not None and region != arn[1]:
        raise InvalidValue(at="key", detail="region is not the key's")
    days = options.get("deletion_days", "7")
    if not days.isdecimal() or int(days) not in _DAYS:
        raise InvalidValue(at="key", detail="deletion_days is 7 to 30")
    if not flag(options, "owned"):

        def grants(connection: AwsConnection, region: str) -> Sequence[Mapping[str, Any]]:
            return kms_grants(connection, region, key, surroundings.room)

        return AwsKeys(await AwsAccount.open(surroundings, region=region, grants=grants), key)
    if not _PREFIX.fullmatch(key):
        raise InvalidValue(at="key", detail="with owned=true: awskms://alias/PREFIX")
    # Owned keys are the platform's: they lie in its account, whatever account the tenant has.
    return OwnedAwsKeys(AwsAccount.of_platform(surroundings, region), key, deletion_days=int(days))


class AwsKeys:
    """A KMS key that wraps tenant keys. It implements :class:`nagaya.keys.driver.KeyDriver`.

    Every method raises ``KeyDisabled``, ``KeyDestroyed`` (deletion is pending), ``KeyMissing``, ``KeyUnreachable``,
    ``PermissionMissing`` or ``CloudCredentialsRefused``. KMS itself takes some seconds until a disabled key refuses.
    """

    def __init__(self, account: AwsAccount, key: str) -> None:
        self._account = account
        self._key = key

    async def generate(self, context: KeyContext) -> tuple[bytes, bytes]:
        """A fresh data key, plain and wrapped, bound to ``context``."""
        try:
            answer = await self._call(
                "generate_data_key",
                KeyId=self._key_of(context.key),
                NumberOfBytes=KEY_BYTES,
                EncryptionContext=context.encryption_context(),
            )
        except AwsRefusal as refusal:
            self._refuse(refusal, context.key)
        return answer["Plaintext"], answer["CiphertextBlob"]

    async def unwrap(self, wrapped: bytes, context: KeyContext) -> bytes:
        """The plain data key. Raises ``SealBroken`` for what was wrapped by another key or for another context, and
        ``KeyAccessRefused`` where the key's owner took the permission or the role away."""
        if not 0 < len(wrapped) <= MAX_WRAPPED:
            raise SealBroken
        try:
            answer = await self._call(
                "decrypt",
                # Named, so that a ciphertext cannot choose the key that opens it.
                KeyId=self._key_of(context.key),
                CiphertextBlob=wrapped,
                EncryptionContext=context.encryption_context(),
            )
        except AwsRefusal as refusal:
            if refusal.trouble is Trouble.BROKEN:
                raise SealBroken from None
            self._refuse(refusal, context.key)
        except PermissionMissing as denied:
            # Who takes the permission or the role away has revoked the key; nobody else can give it back.
            raise KeyAccessRefused(needs=denied.facts["action"]) from denied
        except CloudCredentialsRefused as denied:
            if denied.facts["detail"] != ROLE_DENIED:
                raise
            raise KeyAccessRefused(needs="sts:AssumeRole by this platform") from denied
        plain: bytes = answer["Plaintext"]
        if len(plain) != KEY_BYTES:
            raise SealBroken
        return plain

    async def close(self) -> None:
        """Close the connections. May be called again."""
        await self._account.close()

    def _key_of(self, name: str) -> str:
        """The KMS key behind a tenant key's name."""
        return self._key

    async def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        client = await self._account.client("kms")
        return await self._account.call(
            getattr(client, operation), deadline_s=KMS_S, unreachable=KeyUnreachable, **request
        )

    def _refuse(self, refusal: AwsRefusal, name: str) -> NoReturn:
        if refusal.trouble is Trouble.DISABLED:
            raise KeyDisabled from refusal
        if refusal.trouble is Trouble.DESTROYED:
            raise KeyDestroyed from refusal
        if refusal.trouble is Trouble.MISSING:
            raise KeyMissing(key=self._key_of(name), place=f"AWS KMS in {self._account.region}") from refusal
        raise refusal


class OwnedAwsKeys(AwsKeys):
    """A KMS key per tenant key, the platform's own. It implements :class:`nagaya.keys.driver.KeyControl` too.

    KMS deletes a destroyed key ``deletion_days`` later and refuses its use at once; until then the account's
    administrators could call it back. Afterwards its name is free in KMS: that it was destroyed stays on record with
    the tenant's key versions.
    """

    def __init__(self, account: AwsAccount, prefix: str, *, deletion_days: int) -> None:
        super().__init__(account, prefix)
        self._deletion_days = deletion_days

    async def generate(self, context: KeyContext) -> tuple[bytes, bytes]:
        """A fresh data key. The first one under a name makes that name's KMS key."""
        try:
            return await super().generate(context)
        except KeyMissing:
            await self._make(context.key)
        return await super().generate(context)

    async def disable(self, key: str) -> None:
        """Refuse every use of the key until it is enabled. Repeating it is harmless."""
        await self._change("disable_key", key)

    async def enable(self, key: str) -> None:
        """Allow a disabled key again. Raises ``KeyDestroyed`` where deletion is pending."""
        await self._change("enable_key", key)

    async def destroy(self, key: str) -> None:
        """Refuse every use of the key for ever, and have KMS delete it. A key that never was is no error."""
        try:
            found, state = await self._describe(key)
        except NotFound:
            return
        if state == "destroyed":
            return
        try:
            await self._call("schedule_key_deletion", KeyId=found, PendingWindowInDays=self._deletion_days)
        except AwsRefusal as refusal:
            if refusal.trouble is not Trouble.DESTROYED:  # another was quicker
                self._refuse(refusal, key)

    async def status(self, key: str) -> str:
        """``enabled``, ``disabled`` or ``destroyed``. Raises ``NotFound`` where there never was such a key."""
        return (await self._describe(key))[1]

    def _key_of(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise NotFound("key")
        return f"{self._key}-{name}"

    async def _describe(self, key: str) -> tuple[str, str]:
        """The id of a tenant key's KMS key and its state: states are changed by id, not by alias."""
        try:
            answer = await self._call("describe_key", KeyId=self._key_of(key))
        except AwsRefusal as refusal:
            if refusal.trouble is Trouble.MISSING:
                raise NotFound("key") from None
            self._refuse(refusal, key)
        found = answer["KeyMetadata"]
        return found["KeyId"], _STATES.get(found["KeyState"], "disabled")

    async def _change(self, operation: str, key: str) -> None:
        found, state = await self._describe(key)
        if state == "destroyed":
            raise KeyDestroyed
        try:
            await self._call(operation, KeyId=found)
        except AwsRefusal as refusal:
            self._refuse(refusal, key)

    async def _make(self, name: str) -> None:
        alias = self._key_of(name)
        answer = await self._call(
            "create_key",
            Description=f"Nagaya tenant key {name}",
            Tags=[{"TagKey": "nagaya:key", "TagValue": name}],
        )
        made = answer["KeyMetadata"]["KeyId"]
        try:
            await self._call("create_alias", AliasName=alias, TargetKeyId=made)
        except AwsRefusal as refusal:
            # Another server was first and its key counts; nothing was wrapped by this one.
            await self._call("schedule_key_deletion", KeyId=made, PendingWindowInDays=_DAYS[0])
            if refusal.trouble is not Trouble.EXISTS:
                self._refuse(refusal, name)
