"""Where a bucket is and who enters it: on AWS by the tenant's role, elsewhere by the keys of ``s3-connection``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]  # aiobotocore ships no types

from nagaya.adapters import Surroundings
from nagaya.blobs.names import check_room
from nagaya.clouds.aws import (
    CONNECT_S,
    MAX_CONNECTIONS,
    AwsAccount,
    new_session,
    read_descriptions,
    stay_in_region,
    url_parts,
)
from nagaya.clouds.aws_role import AwsConnection, check_region
from nagaya.clouds.aws_tls import SharedTls
from nagaya.clouds.resolver import CheckedResolver
from nagaya.errors import AddressRefused, ConnectionSecretInvalid, InvalidValue
from nagaya.kernel.egress import EgressPolicy

SECRET: Final = "s3-connection"  # noqa: S105 - a secret's name
PLATFORM_ROOM: Final = "_platform"

_BUCKET: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]|\.(?=[a-z0-9])){1,61}[a-z0-9]")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(?:/[A-Za-z0-9_-]{1,63})*")
MAX_PREFIX: Final = 200


class S3Place(NamedTuple):
    """A bucket, a prefix in it, a region, and the endpoint where it is not AWS's own."""

    bucket: str
    prefix: str
    region: str
    endpoint: str

    def key(self, room: str, name: str) -> str:
        """The key of a room's blob. A room's name has no slash, so no key of one is a key of another."""
        return f"{self.prefix}/{room}/{name}" if self.prefix else f"{room}/{name}"

    @property
    def options(self) -> dict[str, Any]:
        """How the client is made."""
        return {
            "signature_version": "s3v4",
            "s3": {"addressing_style": "path" if self.endpoint else "auto"},
            # What is sent is sealed and so proves itself; a checksum besides costs a pass over every part.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


class S3Keys(msgspec.Struct, frozen=True, kw_only=True):
    """The secret ``s3-connection``, for a storage with an endpoint of its own."""

    access_key_id: str
    secret_access_key: str

    def __repr__(self) -> str:
        return "S3Keys(…)"


def s3_place(url: str) -> S3Place:
    """What an address says. Raises ``InvalidValue``."""
    head, options = url_parts(url, "s3", known=frozenset({"region", "endpoint"}))
    bucket, _, prefix = head.partition("/")
    prefix = prefix.rstrip("/")
    if not _BUCKET.fullmatch(bucket) or (prefix and not _PREFIX.fullmatch(prefix)) or len(prefix) > MAX_PREFIX:
        raise InvalidValue(param="blobs", at="blobs", detail="use s3://bucket[/prefix][?region=…]")
    return S3Place(bucket, prefix, options.get("region", ""), unquote(options.get("endpoint", "")).rstrip("/"))


async def open_account(place: S3Place, surroundings: Surroundings) -> AwsAccount:
    """The account that enters the bucket; nothing is asked of it yet. Raises as :func:`nagaya.blobs.s3.open_house`."""
    if place.endpoint:
        check_endpoint(place.endpoint, surroundings.egress)
        secret = await surroundings.secret(SECRET)
        if secret is None:
            # The platform's own credentials must not reach a host that somebody else chose.
            raise ConnectionSecretInvalid(name=SECRET, problem="an endpoint of your own needs it")
        try:
            keys = msgspec.json.decode(secret, type=S3Keys)
        except (msgspec.DecodeError, UnicodeDecodeError):
            problem = "it must be a JSON object with access_key_id and secret_access_key"
            raise ConnectionSecretInvalid(name=SECRET, problem=problem) from None
        region = check_region(place.region or "us-east-1", surroundings.regions)
        return CompatibleAccount(surroundings, region, place.endpoint, keys)

    def grants(connection: AwsConnection, region: str) -> Sequence[Mapping[str, Any]]:
        return statements(place, surroundings.room, connection.partition)

    return await AwsAccount.open(surroundings, region=place.region, grants=grants)


def check_endpoint(endpoint: str, egress: EgressPolicy) -> None:
    """Refuse an endpoint that is none, points inside, or would carry keys in the open to a host not allowed for it.

    Names are checked again by what they resolve to, at every connection.
    """
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise InvalidValue(param="blobs", at="endpoint", detail="use https://host[:port]") from None
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("https", "http") or not host or not plain:
        raise InvalidValue(param="blobs", at="endpoint", detail="use https://host[:port]")
    egress.check(host, port)
    if parts.scheme == "http" and not egress.allows(host, port):
        raise AddressRefused(host=host)


def statements(place: S3Place, room: str, partition: str) -> list[dict[str, Any]]:
    """The session policy's statements: a room's own keys and nothing beside them; the platform's: the prefix."""
    base = f"{place.prefix}/" if place.prefix else ""
    keys = f"{base}*" if room == PLATFORM_ROOM else f"{base}{check_room(room)}/*"
    bucket = f"arn:{partition}:s3:::{place.bucket}"
    return [
        {
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            "Resource": f"{bucket}/{keys}",
        },
        {
            "Effect": "Allow",
            "Action": ["s3:ListBucket"],
            "Resource": bucket,
            "Condition": {"StringLike": {"s3:prefix": keys}},
        },
    ]


class CompatibleAccount(AwsAccount):
    """A storage that speaks S3 at an endpoint of its own, entered with the keys of ``s3-connection``."""

    def __init__(self, surroundings: Surroundings, region: str, endpoint: str, keys: S3Keys) -> None:
        super().__init__(surroundings.room, region, None, ())
        self._endpoint = endpoint
        self._resolver = CheckedResolver(surroundings.egress)
        # A session of its own: the platform's has the platform's credentials.
        self._session = new_session()
        self._session.set_credentials(keys.access_key_id, keys.secret_access_key)

    async def _make(self, service: str, options: dict[str, Any]) -> Any:
        await asyncio.to_thread(read_descriptions, service)
        config = AioConfig(
            connect_timeout=CONNECT_S,
            read_timeout=60,
            max_pool_connections=MAX_CONNECTIONS,
            retries={"total_max_attempts": 1, "mode": "standard"},
            parameter_validation=False,
            tcp_keepalive=True,
            user_agent_extra="nagaya",
            proxies={},
            connector_args={"resolver": self._resolver},
            http_session_cls=SharedTls,
            **options,
        )
        made = self._session.create_client(service, region_name=self.region, endpoint_url=self._endpoint, config=config)
        client = await self._closing.enter_async_context(made)
        stay_in_region(client)
        return client
