"""Blobs in Amazon S3, or in a storage that speaks its protocol.

A room's blobs are the keys ``prefix/room/name`` of a bucket. What fits into one part is one PUT; anything larger is a
multipart upload, which shows nothing before it is completed and is aborted where it fails. Conditions are S3's own
(``If-None-Match``, ``If-Match``), so they hold among all writers.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from io import BytesIO
from typing import Any, Final

import aiohttp
from botocore.exceptions import (  # type: ignore[import-untyped]  # botocore ships no types
    BotoCoreError,
    HTTPClientError,
)

from nagaya.adapters import Surroundings
from nagaya.blobs.driver import MAX_PAGE, BlobInfo
from nagaya.blobs.names import check_name, check_room
from nagaya.blobs.s3_account import S3Place, open_account, s3_place
from nagaya.clouds.aws import AwsAccount
from nagaya.clouds.aws_errors import AwsRefusal, Trouble
from nagaya.errors import (
    BlobsUnreachable,
    ConditionFailed,
    InvalidValue,
    NagayaError,
    NotFound,
    PermissionMissing,
    RegionRefused,
    StoreDamaged,
    TenantExists,
)

PART_BYTES: Final = 5 * 1024 * 1024
"""The least that S3 takes as a part that is not the last, and so the most that waits in memory."""

PIECE_BYTES: Final = 256 * 1024
CALL_S: Final = 25.0
"""One call with all its repeats. Less than the portable class waits, so that the better error is told."""

_ABORT_S: Final = 5.0
_RESUMES: Final = 3
_ELSEWHERE: Final = frozenset({"301", "307", "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed"})
_REGION: Final = re.compile(r"[a-z0-9-]{1,40}")
_ROOM_MARK: Final = "!room"  # sorts before every name and is none
_OURS: Final = "nagaya-write"

_CUT_OFF: Final = (aiohttp.ClientError, BotoCoreError, OSError)


async def open_house(url: str, surroundings: Surroundings) -> S3House:
    """The bucket that ``s3://bucket[/prefix][?region=…][&endpoint=https://…]`` names; nothing is asked of it yet.

    On AWS the room's account is entered as :class:`AwsAccount` says, narrowed to the room's own keys. With
    ``endpoint``, a storage of your own, the secret ``s3-connection`` holds the keys. Raises ``InvalidValue``,
    ``AddressRefused``, ``RegionRefused``, ``ConnectionSecretInvalid``.
    """
    place = s3_place(url)
    return S3House(place, await open_account(place, surroundings))


class S3House:
    """All rooms in one bucket, under one prefix."""

    def __init__(self, place: S3Place, account: AwsAccount) -> None:
        self._place = place
        self._bucket = _Bucket(place, account)

    async def create(self, room: str) -> None:
        key = self._place.key(check_room(room), _ROOM_MARK)
        try:
            await _Upload(self._bucket, key, "").finish(BytesIO())
        except AwsRefusal as refused:
            problem = self._bucket.mapped(refused)
            if isinstance(problem, ConditionFailed):
                raise TenantExists(value=room) from None
            raise problem from refused
        # Reading and listing must be allowed too; better known now than at the first file.
        try:
            await self.size_bytes(room)
        except NagayaError:
            with contextlib.suppress(NagayaError, AwsRefusal):
                await self._bucket.call("delete_object", Key=key)
            raise

    async def open(self, room: str) -> S3Blobs:
        key = self._place.key(check_room(room), _ROOM_MARK)
        if await self._bucket.head(key) is None:
            raise StoreDamaged(place=f"{self._place}/{room}")
        return S3Blobs(self._bucket, self._place.key(room, ""))

    async def destroy(self, room: str) -> None:
        base = self._place.key(check_room(room), "")
        # AWS cannot limit this listing to a prefix, so a room's own role may not have it; then the bucket's lifecycle
        # rule removes what is left.
        with contextlib.suppress(PermissionMissing):
            async for key, upload in self._bucket.unfinished(base):
                await self._bucket.answered("abort_multipart_upload", Key=key, UploadId=upload)
        while page := await self._bucket.page(Prefix=base, MaxKeys=MAX_PAGE):
            keys = [{"Key": each["Key"]} for each in page]
            answer = await self._bucket.answered("delete_objects", Delete={"Objects": keys, "Quiet": True})
            if answer.get("Errors"):
                raise BlobsUnreachable

    async def size_bytes(self, room: str) -> int:
        base = self._place.key(check_room(room), "")
        total, after = 0, ""
        while page := await self._bucket.page(Prefix=base, StartAfter=base + after, MaxKeys=MAX_PAGE):
            total += sum(each["Size"] for each in page)
            after = page[-1]["Key"].removeprefix(base)
        return total

    async def close(self) -> None:
        await self._bucket.close()


class S3Blobs:
    """One room's blobs. See :class:`nagaya.blobs.driver.BlobDriver`; also gives pre-signed addresses."""

    def __init__(self, bucket: _Bucket, base: str) -> None:
        self._bucket = bucket
        self._base = base

    async def put(self, name: str, parts: AsyncIterator[bytes], *, expect: str | None = None) -> BlobInfo:
        upload = _Upload(self._bucket, self._base + check_name(name), expect)
        waiting = BytesIO()
        try:
            async for part in parts:
                waiting.write(part)
                del part  # held no longer than it takes to copy it
                if waiting.tell() >= PART_BYTES:
                    # Sent before more is asked for, which its maker would hold in memory besides.
                    await upload.part(waiting)
                    waiting = BytesIO()
            version, size = await upload.finish(waiting)
        except BaseException as failure:
            await upload.abort()
            if isinstance(failure, AwsRefusal):
                raise self._bucket.mapped(failure) from failure
            raise
        return BlobInfo(name, size, version)

    async def read(self, name: str, *, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        key = self._base + check_name(name)
        at, version, resumes = start, "", 0
        while True:
            request: dict[str, Any] = {"Key": key}
            if at or end is not None:
                request["Range"] = f"bytes={at}-{'' if end is None else end - 1}"
            if version:
                request["IfMatch"] = version
            try:
                answer = await self._bucket.call("get_object", **request)
            except AwsRefusal as refused:
                if _code(refused) == "InvalidRange":
                    return
                if _code(refused) in ("NoSuchKey", "404"):
                    raise (ConditionFailed() if version else NotFound("file")) from None
                raise self._bucket.mapped(refused) from refused
            version = answer["ETag"]
            body = answer["Body"]
            left = answer["ContentLength"]
            try:
                while left:
                    piece = await body.read(min(left, PIECE_BYTES))
                    if not piece:
                        break
                    left -= len(piece)
                    at += len(piece)
                    yield piece
                    del piece
            except _CUT_OFF:
                pass
            finally:
                body.close()
            if not left:
                return
            # Cut off on the way: on from there, if it is the same version still.
            resumes += 1
            if resumes > _RESUMES:
                raise BlobsUnreachable

    async def info(self, name: str) -> BlobInfo | None:
        answer = await self._bucket.head(self._base + check_name(name))
        return None if answer is None else BlobInfo(name, answer["ContentLength"], _version(answer))

    async def delete(self, name: str) -> None:
        await self._bucket.answered("delete_object", Key=self._base + check_name(name))

    async def list(self, *, prefix: str = "", after: str = "", limit: int = MAX_PAGE) -> Sequence[BlobInfo]:
        start = self._base + (after or _ROOM_MARK)
        page = await self._bucket.page(Prefix=self._base + prefix, StartAfter=start, MaxKeys=limit)
        return [BlobInfo(each["Key"].removeprefix(self._base), each["Size"], _version(each)) for each in page]

    async def presigned_get(self, name: str, *, lifetime_s: int) -> str:
        """As the port says, and no longer than the credentials that sign it: at least nine tenths of the hour that a
        tenant's role gives."""
        return await self._bucket.presigned("get_object", lifetime_s, Key=self._base + check_name(name))

    async def presigned_put(self, name: str, *, lifetime_s: int, size: int) -> str:
        key = self._base + check_name(name)
        return await self._bucket.presigned("put_object", lifetime_s, Key=key, ContentLength=size)

    async def close(self) -> None:
        """Nothing is held open: the connections are the house's."""


class _Upload:
    """A blob on its way in: in one call, or in parts where it is larger than one."""

    def __init__(self, bucket: _Bucket, key: str, expect: str | None) -> None:
        self._bucket = bucket
        self._key = key
        self._condition: dict[str, str] = {}
        if expect is not None:
            self._condition = {"IfMatch": f'"{expect}"'} if expect else {"IfNoneMatch": "*"}
        # By this a repeat that finds its own first try already done knows it.
        self._mark = secrets.token_hex(16)
        self._id = ""
        self._parts: list[dict[str, Any]] = []
        self._size = 0

    async def part(self, content: BytesIO) -> None:
        size = content.tell()
        if not self._id:
            begun = await self._bucket.call("create_multipart_upload", Key=self._key, Metadata={_OURS: self._mark})
            self._id = begun["UploadId"]
        number = len(self._parts) + 1
        sent = await self._bucket.call("upload_part", Key=self._key, UploadId=self._id, PartNumber=number, Body=content)
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        self._size += size

    async def finish(self, content: BytesIO) -> tuple[str, int]:
        """Send the rest and make the blob appear; gives its version and size."""
        request: dict[str, Any] = {"Key": self._key, **self._condition}
        if self._id:
            if content.tell():
                await self.part(content)
            operation = "complete_multipart_upload"
            request |= {"UploadId": self._id, "MultipartUpload": {"Parts": self._parts}}
        else:
            self._size = content.tell()
            operation = "put_object"
            request |= {"Body": content, "Metadata": {_OURS: self._mark}}
        try:
            answer = await self._bucket.call(operation, **request)
        except AwsRefusal:
            # Whether it was repeated is not known here: the HTTP client does so too where a kept line broke.
            found = await self._bucket.head(self._key)
            if found is None or found.get("Metadata", {}).get(_OURS) != self._mark:
                raise
            answer = found
        self._id = ""
        return _version(answer), self._size

    async def abort(self) -> None:
        """Let S3 forget the parts, even while being cancelled. May be called at any time."""
        if self._id:
            request = {"Key": self._key, "UploadId": self._id}
            self._id = ""
            await self._bucket.surely(self._bucket.answered("abort_multipart_upload", _ABORT_S, **request))


class _Bucket:
    """Calls to one bucket."""

    def __init__(self, place: S3Place, account: AwsAccount) -> None:
        self._place = place
        self._account = account
        self._last_acts: set[asyncio.Task[Any]] = set()

    async def call(self, operation: str, deadline_s: float = CALL_S, **request: Any) -> dict[str, Any]:
        """One call. Raises ``AwsRefusal`` where S3 answers no, ours for the rest."""
        asked = getattr(await self._client(), operation)
        body = request.get("Body")

        async def ask(**fields: Any) -> dict[str, Any]:
            if body is not None:
                body.seek(0)  # a repeat sends it from its beginning again
            try:
                found: dict[str, Any] = await asked(**fields)
            except HTTPClientError as failed:
                if isinstance(refused := failed.kwargs.get("error"), NagayaError):
                    raise refused from None  # an address that may not be connected to; trying again changes nothing
                raise
            return found

        return await self._account.call(
            ask, deadline_s=deadline_s, unreachable=BlobsUnreachable, Bucket=self._place.bucket, **request
        )

    async def answered(self, operation: str, deadline_s: float = CALL_S, **request: Any) -> dict[str, Any]:
        """One call whose refusals mean nothing particular."""
        try:
            return await self.call(operation, deadline_s, **request)
        except AwsRefusal as refused:
            if _code(refused) in ("NoSuchUpload", "NoSuchKey"):
                return {}
            raise self.mapped(refused) from refused

    async def head(self, key: str) -> dict[str, Any] | None:
        try:
            return await self.call("head_object", Key=key)
        except AwsRefusal as refused:
            if _code(refused) in ("404", "NoSuchKey", "NotFound"):
                return None
            raise self.mapped(refused) from refused

    async def page(self, **request: Any) -> list[dict[str, Any]]:
        """Objects in the order of their keys: as many as were asked for, unless there are no more."""
        found: list[dict[str, Any]] = []
        wanted = request.pop("MaxKeys")
        while True:
            answer = await self.answered("list_objects_v2", MaxKeys=wanted - len(found), **request)
            found += answer.get("Contents", ())
            if not answer.get("IsTruncated") or len(found) >= wanted:
                return found
            request["ContinuationToken"] = answer["NextContinuationToken"]

    async def unfinished(self, base: str) -> AsyncIterator[tuple[str, str]]:
        """Multipart uploads that were begun below ``base`` and never ended."""
        request: dict[str, Any] = {"Prefix": base}
        while True:
            answer = await self.answered("list_multipart_uploads", **request)
            for each in answer.get("Uploads", ()):
                yield each["Key"], each["UploadId"]
            if not answer.get("IsTruncated"):
                return
            request |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    async def presigned(self, operation: str, lifetime_s: int, **request: Any) -> str:
        client = await self._client()
        await self._account.ready_for(lifetime_s)
        address: str = await client.generate_presigned_url(
            operation, Params={"Bucket": self._place.bucket, **request}, ExpiresIn=lifetime_s
        )
        return address

    async def surely(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do ``work`` to its end, also where the caller is cancelled; its failure is nobody's."""
        task = asyncio.ensure_future(work)
        self._last_acts.add(task)
        task.add_done_callback(self._last_acts.discard)
        with contextlib.suppress(NagayaError):
            await asyncio.shield(task)

    def mapped(self, refused: AwsRefusal) -> NagayaError:
        """Ours for an answer that means the same in every call."""
        code = _code(refused)
        lies_in = refused.answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region", "")
        if code in _ELSEWHERE or (code == "400" and lies_in not in ("", self._account.region)):
            region = lies_in if _REGION.fullmatch(lies_in) else "another region"
            return RegionRefused(region=region, allowed=self._account.region)
        if code in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchUpload"):
            return ConditionFailed()
        if code in ("404", "NoSuchKey") and refused.trouble is not Trouble.MISSING:
            # The blob that was to be replaced is not there.
            return ConditionFailed()
        if refused.trouble is Trouble.MISSING:
            return InvalidValue(param="blobs", at="blobs", detail=f"there is no bucket '{self._place.bucket}'")
        return BlobsUnreachable()

    async def close(self) -> None:
        await asyncio.gather(*self._last_acts, return_exceptions=True)
        await self._account.close()

    async def _client(self) -> Any:
        return await self._account.client("s3", **self._place.options)


def _code(refused: AwsRefusal) -> str:
    return str(refused.answer.get("Error", {}).get("Code", ""))


def _version(answer: dict[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')
