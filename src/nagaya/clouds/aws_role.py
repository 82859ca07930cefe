"""A tenant's own AWS account: connection secret, ExternalId, and credentials of an hour that renew themselves."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from botocore.credentials import ReadOnlyCredentials  # type: ignore[import-untyped]  # botocore ships no types

from nagaya.errors import (
    CloudUnreachable,
    ConnectionSecretInvalid,
    ExternalIdRefused,
    NagayaError,
    RegionRefused,
    SessionClosed,
)
from nagaya.kernel.ended import ended

CONNECTION_SECRET: Final = "aws-connection"  # noqa: S105 - a secret's name
ISSUED_SECRET: Final = "aws-external-id"  # noqa: S105 - a secret's name
ROLE_S: Final = 3600
"""How long the credentials of one AssumeRole live. Chained roles get no more from AWS."""

ROLE_DENIED: Final = "sts:AssumeRole was denied"
"""The detail of ``CloudCredentialsRefused`` where the role's owner does not let this platform in."""

MAX_POLICY_CHARACTERS: Final = 2048
"""Of a session policy: the limit of STS."""

_EARLY: Final = 0.25
"""The share of a lifetime that is left when renewal begins in the background: 15 minutes of an hour."""
_LAST: Final = 0.02
"""The share that is left when nothing is begun with the old credentials any more: 72 seconds of an hour."""
_NEARLY_NEW: Final = 0.9
"""The share that is left when even a long use gets no newer ones, so that not every use costs a renewal."""
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MOST_S: Final = 30.0
_RANDOM_BYTES: Final = 32
_EXTERNAL_ID: Final = re.compile(r"nagaya-[A-Za-z0-9_-]{43}")
_ROLE: Final = re.compile(r"arn:(aws|aws-cn|aws-us-gov):iam::(\d{12}):role/[\w+=,.@/-]{1,512}", re.ASCII)
_REGION: Final = re.compile(r"[a-z]{2}(-[a-z]{2,12}){1,3}-\d{1,2}")
_UNFIT: Final = re.compile(r"[^\w+=,.@-]", re.ASCII)


class AwsConnection(msgspec.Struct, frozen=True, kw_only=True):
    """What ``aws-connection`` holds: JSON with the names that the guide gives them. Other fields are left alone."""

    role_arn: str
    external_id: str
    account_id: str = ""
    region: str = ""
    dynamodb_table_name: str = ""
    s3_bucket_name: str = ""

    @property
    def partition(self) -> str:
        """What the ARNs of the role's account begin with: ``aws``, ``aws-cn`` or ``aws-us-gov``."""
        return self.role_arn.split(":")[1]


def new_external_id() -> str:
    """A fresh ExternalId of 256 random bits: for the tenant's trust policy, and to be kept as ``aws-external-id``."""
    return "nagaya-" + base64.urlsafe_b64encode(os.urandom(_RANDOM_BYTES)).rstrip(b"=").decode()


def with_external_id(connection: bytes, issued: str) -> bytes:
    """The connection secret as a tenant sent it, with the ExternalId that was made for this tenant.

    Raises ``ExternalIdRefused`` where the tenant's JSON names another one: with an ExternalId of a customer's choice,
    one customer could have Nagaya enter another's account. Raises ``ConnectionSecretInvalid``.
    """
    try:
        fields = msgspec.json.decode(connection, type=dict[str, Any])
    except msgspec.DecodeError as wrong:
        raise ConnectionSecretInvalid(name=CONNECTION_SECRET, problem=str(wrong)) from None
    if fields.get("external_id", issued) != issued or not _EXTERNAL_ID.fullmatch(issued):
        raise ExternalIdRefused
    made = msgspec.json.encode({**fields, "external_id": issued})
    read_connection(made, issued)
    return made


def read_connection(connection: bytes, issued: str | None) -> AwsConnection:
    """The connection secret, checked. ``issued`` is the ExternalId made for this tenant, where one is on record.

    Raises ``ConnectionSecretInvalid`` (which names the field, never a value) or ``ExternalIdRefused``.
    """
    try:
        found = msgspec.json.decode(connection, type=AwsConnection)
    except msgspec.DecodeError as wrong:
        raise ConnectionSecretInvalid(name=CONNECTION_SECRET, problem=str(wrong)) from None
    role = _ROLE.fullmatch(found.role_arn)
    if role is None:
        raise ConnectionSecretInvalid(name=CONNECTION_SECRET, problem="role_arn is not the ARN of an IAM role")
    if found.account_id not in ("", role[2]):
        raise ConnectionSecretInvalid(name=CONNECTION_SECRET, problem="account_id is not the role's account")
    if not _EXTERNAL_ID.fullmatch(found.external_id) or issued not in (None, found.external_id):
        raise ExternalIdRefused
    return msgspec.structs.replace(found, account_id=role[2])


def check_region(region: str, allowed: Sequence[str]) -> str:
    """``region`` itself. Raises ``RegionRefused`` where it is none of AWS's or outside ``allowed``, if any."""
    if not _REGION.fullmatch(region) or (allowed and region not in allowed):
        raise RegionRefused(region=region[:40], allowed=", ".join(allowed) or "AWS regions")
    return region


def session_name(room: str) -> str:
    """The RoleSessionName: what the tenant reads in its own CloudTrail."""
    return f"nagaya-{_UNFIT.sub('-', room)}"[:64]


def session_policy(statements: Sequence[Mapping[str, Any]]) -> str:
    """The session policy of a list of statements. Raises ``ValueError`` past what STS takes."""
    policy = json.dumps({"Version": "2012-10-17", "Statement": list(statements)}, separators=(",", ":"))
    if len(policy) > MAX_POLICY_CHARACTERS:
        raise ValueError("the session policy is longer than STS allows")
    return policy


@dataclass(frozen=True)
class Granted:
    """What one AssumeRole gave, and for how many seconds."""

    access_key: str
    secret_key: str
    token: str
    lifetime_s: float

    def __repr__(self) -> str:
        return f"Granted(lifetime_s={self.lifetime_s})"


class RoleCredentials:
    """Credentials of a role, as botocore asks for them.

    One renewal is in flight for however many callers. It begins in the background while the old ones still serve, so
    that nobody waits for it and what is under way outlives it. Where STS fails, the next try comes after a pause
    that grows to 30 s; until then, and once the old ones have ended, callers get the failure at once.
    """

    method = "assume-role"

    def __init__(
        self,
        assume: Callable[[], Awaitable[Granted]],
        *,
        account_id: str,
        room: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._assume = assume
        self._account_id = account_id
        self._room = room
        self._monotonic = monotonic
        self._held: Granted | None = None
        self._ends_s = 0.0
        self.generation = 0
        """How many times credentials were got."""
        self._renewal: asyncio.Task[Granted] | None = None
        self._failures = 0
        self._failure: NagayaError | None = None
        self._not_before_s = 0.0
        self._closed = False

    async def get_frozen_credentials(self) -> Any:
        """Access key, secret key and token as they hold now. Raises what the last renewal failed with."""
        held, left_s = self._held, self._ends_s - self._monotonic()
        if held is None or left_s <= held.lifetime_s * _LAST:
            held = await self._renewed()
        elif left_s <= held.lifetime_s * _EARLY and self._renewal is None and self._monotonic() >= self._not_before_s:
            self._begin()
        return ReadOnlyCredentials(held.access_key, held.secret_key, held.token, self._account_id)

    async def ready_for(self, lifetime_s: float) -> None:
        """Renew credentials that end sooner, unless they are nearly new. Raises what the renewal failed with."""
        held, left_s = self._held, self._ends_s - self._monotonic()
        if held is None or left_s < min(lifetime_s, held.lifetime_s * _NEARLY_NEW):
            await self._renewed()

    async def get_account_id(self) -> str:
        """The account that the role lies in."""
        return self._account_id

    def get_deferred_property(self, name: str) -> Callable[[], Any]:
        """What botocore asks for while it makes a client. aiobotocore then asks :meth:`get_account_id` instead."""
        return lambda: getattr(self, name, None)

    def drop(self, generation: int) -> bool:
        """AWS does not take the credentials of this generation any more: the next caller gets new ones. Newer ones are
        kept, for the call that was refused carried the old. False: there were none."""
        if self._held is not None and generation == self.generation:
            self._held = None
        return generation > 0

    async def close(self) -> None:
        """Forget the credentials and end a renewal under way. May be called again."""
        self._closed = True
        self._held = None
        if self._renewal is not None:
            await ended([self._renewal])

    async def _renewed(self) -> Granted:
        if self._closed:
            raise SessionClosed
        if self._renewal is None:
            if self._failure is not None and self._monotonic() < self._not_before_s:
                raise self._failure.with_traceback(None)
            self._begin()
        assert self._renewal is not None
        renewal = self._renewal
        try:
            # Shielded: a caller who goes away takes nobody's credentials along.
            return await asyncio.shield(renewal)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if renewal.cancelled() and caller is not None and not caller.cancelling():
                # The account was closed; whoever waited was not cancelled.
                raise SessionClosed from None
            raise

    def _begin(self) -> None:
        self._renewal = asyncio.create_task(self._renew())
        self._renewal.add_done_callback(self._over)

    def _over(self, renewal: asyncio.Task[Granted]) -> None:
        self._renewal = None
        if not renewal.cancelled():
            renewal.exception()  # looked at, for a renewal in the background has nobody else who does

    async def _renew(self) -> Granted:
        began_s = self._monotonic()
        try:
            granted = await self._assume()
        except NagayaError as failed:
            self._failed(failed)
            raise
        except (OSError, TimeoutError) as failed:
            lost = CloudUnreachable(room=self._room)
            self._failed(lost)
            raise lost from failed
        if not self._closed:
            self._held, self._ends_s = granted, began_s + granted.lifetime_s
            self.generation += 1
        self._failures, self._failure = 0, None
        return granted

    def _failed(self, failure: NagayaError) -> None:
        pause_s = min(_BACKOFF_MOST_S, _BACKOFF_FIRST_S * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._failure = failure
        self._not_before_s = self._monotonic() + pause_s * random.uniform(0.75, 1.25)  # noqa: S311 - spreads retries
