"""What S3 may answer and its stand-in never does."""

import pytest

from nagaya.blobs.s3 import PART_BYTES, S3House
from nagaya.blobs.s3_account import S3Keys, s3_place
from nagaya.clouds.aws_errors import AwsRefusal, Trouble
from nagaya.errors import BlobsUnreachable, ConditionFailed, InvalidValue
from nagaya.testing.blobs import parts_of


class Refused(Exception):
    """As botocore's own."""

    def __init__(self, code):
        self.response = {"Error": {"Code": code}}


class Account:
    """Answers what it is told to, in order; an exception is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def client(self, service, **options):
        return self

    def __getattr__(self, operation):
        async def ask(**request):
            self.asked.append((operation, request))
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask

    async def call(self, operation, *, deadline_s, unreachable, **request):
        return await operation(**request)

    async def close(self):
        """Nothing is held."""


def refused(code, trouble=Trouble.OTHER):
    return AwsRefusal(trouble, Refused(code), doubtful=False)


def house_of(*answers):
    account = Account(*answers)
    return S3House(s3_place("s3://bucket/p"), account), account


MARK = {"ContentLength": 0, "ETag": '"e"'}


async def room_of(*answers):
    house, account = house_of(MARK, *answers)
    return await house.open("acme"), account


async def test_a_page_shorter_than_it_may_be_is_filled_up():
    first = {
        "Contents": [{"Key": "p/acme/a", "Size": 1, "ETag": '"1"'}],
        "IsTruncated": True,
        "NextContinuationToken": "t",
    }
    second = {"Contents": [{"Key": "p/acme/b", "Size": 2, "ETag": '"2"'}], "IsTruncated": False}
    room, account = await room_of(first, second)
    assert [each.name for each in await room.list(limit=5)] == ["a", "b"]
    assert account.asked[-1][1]["ContinuationToken"] == "t"
    assert account.asked[-1][1]["MaxKeys"] == 4


async def test_more_unfinished_uploads_than_a_page_are_all_aborted():
    def page(number, more):
        upload = {"Key": f"p/acme/{number}", "UploadId": f"u{number}"}
        return {"Uploads": [upload], "IsTruncated": more, "NextKeyMarker": "k", "NextUploadIdMarker": "m"}

    house, account = house_of(page(1, True), {}, page(2, False), refused("NoSuchUpload"), {})
    await house.destroy("acme")
    aborted = [request["UploadId"] for operation, request in account.asked if operation == "abort_multipart_upload"]
    assert aborted == ["u1", "u2"]


async def test_a_room_that_could_not_be_emptied_is_not_called_destroyed():
    contents = {"Contents": [{"Key": "p/acme/a", "Size": 1, "ETag": '"1"'}]}
    house, _ = house_of({}, contents, {"Errors": [{"Key": "p/acme/a", "Code": "InternalError"}]})
    with pytest.raises(BlobsUnreachable):
        await house.destroy("acme")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refused("ConditionalRequestConflict"), ConditionFailed),
        (refused("NoSuchKey"), ConditionFailed),
        (refused("NoSuchBucket", Trouble.MISSING), InvalidValue),
        (refused("SomethingNew"), BlobsUnreachable),
    ],
)
async def test_what_a_write_is_refused_with_is_told(answer, error):
    room, _ = await room_of(answer, refused("404"))
    with pytest.raises(error):
        await room.put("one", parts_of(b"x"), expect="e")


async def test_a_blob_that_ends_with_a_whole_part_sends_no_empty_one():
    room, account = await room_of({"UploadId": "u"}, {"ETag": '"1"'}, {"ETag": '"2"'}, {"ETag": '"e-2"'})
    written = await room.put("one", parts_of(*[b"x" * (PART_BYTES // 2)] * 4))
    assert (written.size, written.version) == (2 * PART_BYTES, "e-2")
    assert [operation for operation, _ in account.asked[-4:]] == [
        "create_multipart_upload", "upload_part", "upload_part", "complete_multipart_upload",
    ]  # fmt: skip
    assert [part["PartNumber"] for part in account.asked[-1][1]["MultipartUpload"]["Parts"]] == [1, 2]


async def test_a_look_that_is_refused_is_told():
    for act in ("info", "delete"):
        room, _ = await room_of(refused("SomethingNew"))
        with pytest.raises(BlobsUnreachable):
            await getattr(room, act)("one")
    room, _ = await room_of(refused("SomethingNew"))
    with pytest.raises(BlobsUnreachable):
        await anext(room.read("one"))


async def test_a_body_that_ends_early_without_a_word_is_read_on():
    class Body:
        def __init__(self, *pieces):
            self.pieces = list(pieces)

        async def read(self, most):
            return self.pieces.pop(0) if self.pieces else b""

        def close(self):
            """Nothing is held."""

    room, account = await room_of(
        {"ETag": '"e"', "ContentLength": 6, "Body": Body(b"abc")},
        {"ETag": '"e"', "ContentLength": 3, "Body": Body(b"def")},
    )
    assert b"".join([piece async for piece in room.read("one")]) == b"abcdef"
    assert account.asked[-1][1] == {"Bucket": "bucket", "Key": "p/acme/one", "Range": "bytes=3-", "IfMatch": '"e"'}


def test_keys_are_not_shown():
    assert "wJalr" not in repr(S3Keys(access_key_id="AKIA", secret_access_key="wJalr"))
