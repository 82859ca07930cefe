"""Tenants' secrets in AWS Secrets Manager, in the platform's account, by the names ``tenant/{id}/{name}``.

Text is kept as ``SecretString``, as consoles and other programs expect it; anything else as ``SecretBinary``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from nagaya.adapters import Surroundings
from nagaya.clouds.aws import AwsAccount, url_parts
from nagaya.clouds.aws_errors import AwsRefusal, Trouble
from nagaya.errors import Conflict, InvalidValue, StoreUnreachable
from nagaya.secrets.vault import full_name

SECRETS_S: Final = 9.0
"""How long one call may take with its repeats: less than the vault waits."""

_ROOM: Final = re.compile(r"[a-z0-9_-]{2,64}")
_PAGE: Final = 100
_TRIES: Final = 4
_MARK: Final = b"\0nagaya\0"
"""Before a value that cannot stand alone: AWS keeps no empty one."""


async def open_secrets(url: str, surroundings: Surroundings) -> AwsSecrets:
    """The secrets of ``surroundings.room`` at ``awssecrets://REGION``. Nothing is asked of AWS yet.

    The platform's own credentials are used: what opens a tenant's account lies here. Raises ``InvalidValue`` or
    ``RegionRefused``.
    """
    region, _ = url_parts(url, "awssecrets", known=frozenset())
    return AwsSecrets(AwsAccount.of_platform(surroundings, region))


class AwsSecrets:
    """One room's secrets. It implements :class:`nagaya.secrets.driver.SecretDriver`; the last writer wins.

    ``names`` may lag some seconds behind: AWS lists eventually.
    """

    def __init__(self, account: AwsAccount) -> None:
        self._account = account
        if not _ROOM.fullmatch(account.room):
            raise InvalidValue(at="room", detail="a tenant's id")
        self._room = account.room

    async def get(self, name: str) -> bytes | None:
        try:
            answer = await self._call("get_secret_value", SecretId=self._full(name))
        except AwsRefusal as refusal:
            if refusal.trouble is Trouble.MISSING or _is_leaving(refusal):
                return None
            raise
        text = answer.get("SecretString")
        value: bytes = answer.get("SecretBinary", b"") if text is None else text.encode()
        return value.removeprefix(_MARK)

    async def put(self, name: str, value: bytes) -> None:
        for _ in range(_TRIES):
            try:
                await self._call("put_secret_value", SecretId=self._full(name), **_held(value))
                return
            except AwsRefusal as refusal:
                if _is_leaving(refusal):
                    await self._restore(name)
                    continue
                if refusal.trouble is not Trouble.MISSING:
                    raise
            try:
                await self._call("create_secret", Name=self._full(name), **_held(value))
                return
            except AwsRefusal as late:
                # Made by another meanwhile, or the former one of this name is not gone yet.
                if late.trouble is not Trouble.EXISTS and not _is_leaving(late):
                    raise
        raise Conflict

    async def delete(self, name: str) -> None:
        """Remove at once, without AWS's days of grace: a withdrawn credential is to be gone."""
        try:
            await self._call("delete_secret", SecretId=self._full(name), ForceDeleteWithoutRecovery=True)
        except AwsRefusal as refusal:
            if refusal.trouble is not Trouble.MISSING and not _is_leaving(refusal):
                raise

    async def names(self) -> Sequence[str]:
        prefix = self._full("")
        request: dict[str, Any] = {"Filters": [{"Key": "name", "Values": [prefix]}], "MaxResults": _PAGE}
        found: list[str] = []
        while True:
            answer = await self._call("list_secrets", **request)
            # Checked again here: the filter is AWS's, the promise is ours.
            found += [
                each["Name"].removeprefix(prefix) for each in answer["SecretList"] if each["Name"].startswith(prefix)
            ]
            if not answer.get("NextToken"):
                return sorted(found)
            request["NextToken"] = answer["NextToken"]

    async def close(self) -> None:
        """Close the connections. May be called again."""
        await self._account.close()

    def _full(self, name: str) -> str:
        return full_name(self._room, name)

    async def _restore(self, name: str) -> None:
        try:
            await self._call("restore_secret", SecretId=self._full(name))
        except AwsRefusal as refusal:
            if refusal.trouble is not Trouble.MISSING and not _is_leaving(refusal):
                raise

    async def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        client = await self._account.client("secretsmanager")
        return await self._account.call(
            getattr(client, operation), deadline_s=SECRETS_S, unreachable=StoreUnreachable, **request
        )


def _held(value: bytes) -> dict[str, Any]:
    if not value or value.startswith(_MARK):
        return {"SecretBinary": _MARK + value}
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return {"SecretBinary": value}
    return {"SecretString": text} if "\0" not in text else {"SecretBinary": value}


def _is_leaving(refusal: AwsRefusal) -> bool:
    """Whether the secret was deleted with days of grace, or is just being removed."""
    error = refusal.answer.get("Error", {})
    return error.get("Code") == "InvalidRequestException" and "delet" in error.get("Message", "").lower()
