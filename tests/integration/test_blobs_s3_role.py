"""A tenant's bucket in the tenant's own account, entered by its role."""

import json
import secrets

import aiobotocore.session
import pytest
from aiohttp import web

from nagaya.blobs.blob_store import Blobs
from nagaya.blobs.s3 import open_house
from nagaya.clouds.aws_errors import AwsRefusal
from nagaya.clouds.aws_role import new_external_id
from nagaya.errors import CloudCredentialsRefused, NagayaError, PermissionMissing, RegionRefused
from nagaya.testing.blobs import content_of, parts_of
from parts.aws import REGION, point_at, surroundings
from parts.ministack import ministack  # noqa: F401 - a fixture

ACCOUNT = "000000000000"


def connection(role_arn, external_id):
    return {"aws-connection": json.dumps({"role_arn": role_arn, "external_id": external_id}).encode()}


@pytest.fixture
async def role(ministack, monkeypatch):  # noqa: F811 - the fixture
    """The ARN of a role that may do everything with S3, and the ExternalId that opens it."""
    point_at(monkeypatch, ministack.url)
    external_id = new_external_id()
    trust = {
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"sts:ExternalId": external_id}},
    }
    allow = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    name = f"nagaya-{secrets.token_hex(4)}"
    async with aiobotocore.session.get_session().create_client("iam", region_name=REGION) as iam:
        document = {"Version": "2012-10-17", "Statement": [trust]}
        made = await iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(document))
        document = {"Version": "2012-10-17", "Statement": [allow]}
        await iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=json.dumps(document))
    return made["Role"]["Arn"], external_id


@pytest.fixture
async def bucket(role):
    name = f"blobs-{secrets.token_hex(8)}"
    async with aiobotocore.session.get_session().create_client("s3", region_name=REGION) as client:
        place = {"LocationConstraint": REGION}
        await client.create_bucket(Bucket=name, CreateBucketConfiguration=place)
    return name


async def test_a_tenants_files_lie_in_its_own_account(role, bucket):
    house = await open_house(f"s3://{bucket}/files?region={REGION}", surroundings(secrets=connection(*role)))
    await house.create("acme")
    blobs = Blobs(await house.open("acme"))
    large = bytes(6 * 1024 * 1024)
    await blobs.put("one", parts_of(large[:5_500_000], large[5_500_000:]), expect="")
    assert await content_of(blobs, "one") == large
    assert (await blobs.presigned_get("one", lifetime_s=60)).count("X-Amz-Security-Token") == 1
    await house.destroy("acme")
    assert await house.size_bytes("acme") == 0
    await house.close()


async def test_another_external_id_does_not_open_the_account(role, bucket):
    secrets_ = connection(role[0], new_external_id())
    house = await open_house(f"s3://{bucket}?region={REGION}", surroundings(secrets=secrets_))
    with pytest.raises(CloudCredentialsRefused):
        await house.create("acme")
    await house.close()


async def test_a_role_that_may_do_more_gives_the_session_no_more(role, bucket):
    platform = await open_house(f"s3://{bucket}/files?region={REGION}", surroundings("_platform"))
    for room in ("acme", "acme-corp"):
        await platform.create(room)
    await Blobs(await platform.open("acme-corp")).put("one", parts_of(b"the neighbour's"))
    house = await open_house(f"s3://{bucket}/files?region={REGION}", surroundings(secrets=connection(*role)))
    own = Blobs(await house.open("acme"))
    await own.put("one", parts_of(b"acme's"))
    for operation, request in (
        ("get_object", {"Key": "files/acme-corp/one"}),
        ("put_object", {"Key": "files/acme-corp/one", "Body": b"x"}),
        ("delete_object", {"Key": "files/acme-corp/one"}),
        ("put_object", {"Key": "elsewhere", "Body": b"x"}),
    ):
        with pytest.raises((PermissionMissing, AwsRefusal, NagayaError)) as refused:
            await _bare(house, operation, request)
        assert isinstance(refused.value, PermissionMissing), operation
    for each in (house, platform):
        await each.close()


async def test_a_bucket_that_lies_in_another_region_is_not_followed_there(monkeypatch):
    signed = []

    async def answer(request):
        signed.append(request.headers["Authorization"].partition("Credential=")[2].split("/")[2])
        if signed[-1] == REGION:
            body = "<Error><Code>PermanentRedirect</Code><Message>elsewhere</Message></Error>"
            return web.Response(status=301, text=body, headers={"x-amz-bucket-region": "us-east-1"})
        return web.Response(headers={"ETag": '"e"'})

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    point_at(monkeypatch, f"http://127.0.0.1:{runner.addresses[0][1]}")
    house = await open_house(f"s3://moved?region={REGION}", surroundings(regions=(REGION,)))
    try:
        for call in (house.create, house.open, house.size_bytes, house.destroy):
            with pytest.raises(RegionRefused, match="us-east-1"):
                await call("acme")
        assert set(signed) == {REGION}
    finally:
        await house.close()
        await runner.cleanup()


async def _bare(house, operation, request):
    """A call past the adapter's own bounds, with the credentials of the room's session."""
    client = await house._bucket._client()
    bucket = house._bucket
    await bucket._account.call(
        getattr(client, operation), deadline_s=5, unreachable=NagayaError, Bucket=house._place.bucket, **request
    )
