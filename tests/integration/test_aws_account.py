"""A tenant's AWS account: whose ExternalId opens it, how its credentials renew, and what ends them."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncIterator

import pytest
from aiobotocore import httpsession
from botocore.loaders import JSONFileLoader

from nagaya.clouds import aws, aws_tls
from nagaya.clouds.aws import AwsAccount
from nagaya.clouds.aws_role import (
    Granted,
    RoleCredentials,
    check_region,
    new_external_id,
    read_connection,
    session_name,
    session_policy,
    with_external_id,
)
from nagaya.errors import (
    CloudCredentialsRefused,
    CloudUnreachable,
    ConnectionSecretInvalid,
    ExternalIdRefused,
    InvalidValue,
    RegionRefused,
    SessionClosed,
    StoreUnreachable,
)
from nagaya.stores.dynamodb import dynamodb_grants, open_house
from parts.aws import REGION, point_at, surroundings
from support.aws_front import Front

pytest_plugins = ["parts.ministack"]

ACCOUNT = "000000000000"


def connection(external_id: str, **fields: str) -> bytes:
    role = f"arn:aws:iam::{ACCOUNT}:role/nagaya"
    return json.dumps({"role_arn": role, "external_id": external_id, "region": REGION, **fields}).encode()


class TestExternalId:
    def test_one_that_a_customer_chose_is_refused(self) -> None:
        issued = new_external_id()
        for chosen in ("acme", "nagaya-acme", "", new_external_id()):
            with pytest.raises(ExternalIdRefused):
                with_external_id(connection(chosen), issued)
        with pytest.raises(ExternalIdRefused):
            with_external_id(connection("chosen"), "chosen")
        made = with_external_id(json.dumps({"role_arn": f"arn:aws:iam::{ACCOUNT}:role/x", "note": 1}).encode(), issued)
        assert json.loads(made) == {"role_arn": f"arn:aws:iam::{ACCOUNT}:role/x", "note": 1, "external_id": issued}
        assert with_external_id(made, issued) == made

    async def test_a_secret_set_by_another_way_with_another_id_opens_nothing(self) -> None:
        mine, other = new_external_id(), new_external_id()
        for held in (
            {"aws-connection": connection("acme")},
            {"aws-connection": connection(other), "aws-external-id": mine.encode()},
            {"aws-connection": connection(mine), "aws-external-id": b"\xff"},
        ):
            with pytest.raises(ExternalIdRefused):
                await AwsAccount.open(surroundings(secrets=held))

    def test_no_two_are_alike(self) -> None:
        assert len({new_external_id() for _ in range(100)}) == 100

    @pytest.mark.parametrize(
        "secret",
        [
            b"", b"[]", b'{"role_arn": 1}', connection("x", role_arn="arn:aws:iam::1:role/x"),
            connection("x", role_arn=f"arn:aws:iam::{ACCOUNT}:user/x"), connection("x", account_id="111111111111"),
        ],
    )  # fmt: skip
    def test_a_secret_that_is_no_connection_is_refused_without_its_words(self, secret: bytes) -> None:
        with pytest.raises(ConnectionSecretInvalid) as refused:
            read_connection(secret, None)
        assert "nagaya-" not in str(refused.value)
        with pytest.raises((ConnectionSecretInvalid, ExternalIdRefused)):
            with_external_id(secret, new_external_id())


def test_a_region_outside_the_tenants_own_is_refused() -> None:
    assert check_region("ap-northeast-1", ()) == "ap-northeast-1"
    assert check_region("us-gov-west-1", ("us-gov-west-1",)) == "us-gov-west-1"
    for region in ("", "us-east-1.evil.example", "us-east-1/", "AP-NORTHEAST-1", "us-east-1\n"):
        with pytest.raises(RegionRefused):
            check_region(region, ())
    with pytest.raises(RegionRefused, match="ap-northeast-1"):
        check_region("us-east-1", ("ap-northeast-1",))


def test_the_session_carries_the_tenant_and_fits() -> None:
    assert session_name("acme-corp") == "nagaya-acme-corp"
    assert session_name("_platform") == "nagaya-_platform"
    assert len(session_name("a" * 63)) == 64
    longest = dynamodb_grants("1" * 12, REGION, "t" * 180, "a" * 63, shared=True)
    assert len(session_policy(longest)) <= 2048
    with pytest.raises(ValueError, match="longer"):
        session_policy(longest * 8)


def test_a_shared_table_is_narrowed_to_keys_that_lead_with_the_room() -> None:
    rows, about = dynamodb_grants(ACCOUNT, REGION, "shared", "acme", shared=True)
    assert rows["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"] == ["acme#*", "acme~*", "acme!*"]
    # A condition over keys holds also where a call has none, as a scan has: that must not pass.
    assert rows["Condition"]["Null"] == {"dynamodb:LeadingKeys": "false"}
    assert not {"dynamodb:Scan", "dynamodb:*"} & set(rows["Action"])
    assert about["Action"] == "dynamodb:DescribeTable"
    (own,) = dynamodb_grants(ACCOUNT, REGION, "own", "acme", shared=False)
    assert own["Resource"] == f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/own"


async def test_in_other_clouds_of_aws_the_session_names_the_table_as_that_cloud_does() -> None:
    secret = connection(new_external_id(), role_arn=f"arn:aws-cn:iam::{ACCOUNT}:role/x")
    house = await open_house("dynamodb://cn-north-1/tbl", surroundings(secrets={"aws-connection": secret}))
    assert house._account._policy is not None
    (statement,) = json.loads(house._account._policy)["Statement"]
    assert statement["Resource"] == f"arn:aws-cn:dynamodb:cn-north-1:{ACCOUNT}:table/tbl-acme"
    await house.close()


class Sts:
    """A clock to be moved, and an STS to be counted and broken."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.asked = 0
        self.fails: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.credentials = RoleCredentials(self.assume, account_id=ACCOUNT, room="acme", monotonic=lambda: self.now_s)

    async def assume(self) -> Granted:
        self.asked += 1
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        return Granted(f"KEY{self.asked}", "secret", "token", 3600.0)

    async def key(self) -> str:
        return (await self.credentials.get_frozen_credentials()).access_key


class TestRenewal:
    async def test_fifty_at_once_ask_sts_once(self) -> None:
        sts = Sts()
        assert set(await asyncio.gather(*(sts.key() for _ in range(50)))) == {"KEY1"}
        assert sts.asked == 1
        assert await sts.credentials.get_account_id() == ACCOUNT

    async def test_renewal_begins_early_and_nobody_waits_for_it(self) -> None:
        sts = Sts()
        await sts.key()
        sts.now_s = 2000
        assert await sts.key() == "KEY1"
        assert sts.asked == 1
        sts.gate.clear()
        sts.now_s = 2800
        assert [await sts.key() for _ in range(5)] == ["KEY1"] * 5
        await asyncio.sleep(0)
        assert sts.asked == 2
        sts.gate.set()
        await asyncio.sleep(0.01)
        assert await sts.key() == "KEY2"

    async def test_a_failing_renewal_leaves_the_old_ones_until_they_end_and_then_asks_seldom(self) -> None:
        sts = Sts()
        await sts.key()
        sts.fails = CloudUnreachable(room="acme")
        sts.now_s = 2800
        assert await sts.key() == "KEY1"
        await asyncio.sleep(0.01)
        assert [await sts.key() for _ in range(20)] == ["KEY1"] * 20
        await asyncio.sleep(0.01)
        assert sts.asked == 2
        sts.now_s = 3590
        for _ in range(20):
            with pytest.raises(CloudUnreachable):
                await sts.key()
        assert sts.asked == 3
        for _ in range(10):
            sts.now_s += 1
            with pytest.raises(CloudUnreachable):
                await sts.key()
        assert sts.asked <= 7
        sts.fails = OSError("no route")
        sts.now_s += 60
        with pytest.raises(CloudUnreachable):
            await sts.key()
        sts.fails = None
        sts.now_s += 60
        assert (await sts.key()).startswith("KEY")

    async def test_a_caller_who_goes_away_takes_nobodys_credentials_along(self) -> None:
        sts = Sts()
        sts.gate.clear()
        first, second = asyncio.create_task(sts.key()), asyncio.create_task(sts.key())
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0)
        sts.gate.set()
        assert await second == "KEY1"
        assert first.cancelled()

    async def test_closing_ends_a_renewal_under_way_and_forgets(self) -> None:
        sts = Sts()
        sts.gate.clear()
        waiting = asyncio.create_task(sts.key())
        await asyncio.sleep(0.01)
        await sts.credentials.close()
        await sts.credentials.close()
        # Whoever waited was not cancelled, and is not to look like it.
        with pytest.raises(SessionClosed):
            await waiting
        with pytest.raises(SessionClosed):
            await sts.key()

    async def test_a_caller_who_is_cancelled_himself_is_cancelled(self) -> None:
        sts = Sts()
        sts.gate.clear()
        waiting = asyncio.create_task(sts.key())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await sts.credentials.close()

    async def test_what_is_signed_for_an_hour_is_signed_with_credentials_that_hold_for_nearly_that(self) -> None:
        sts = Sts()
        await sts.credentials.ready_for(600)
        assert sts.asked == 1
        sts.now_s = 300
        await sts.credentials.ready_for(3600)
        assert sts.asked == 1
        sts.now_s = 2000
        await sts.credentials.ready_for(600)
        assert sts.asked == 1
        await sts.credentials.ready_for(1800)
        assert await sts.key() == "KEY2"
        assert sts.asked == 2

    async def test_newer_credentials_are_not_dropped_for_a_call_that_carried_the_old(self) -> None:
        sts = Sts()
        assert not sts.credentials.drop(0)
        await sts.key()
        assert sts.credentials.drop(1)
        assert await sts.key() == "KEY2"
        assert sts.credentials.drop(1)
        assert await sts.key() == "KEY2"

    def test_what_was_granted_does_not_show_in_a_trace(self) -> None:
        assert "secret" not in repr(Granted("KEY", "secret", "token", 1.0))


@pytest.fixture
async def front(ministack, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Front]:
    async with Front(ministack.url, sts_lifetime_s=3600) as front:
        point_at(monkeypatch, front.url)
        yield front


def held() -> dict[str, bytes]:
    return {"aws-connection": connection(new_external_id())}


class TestUnderLoad:
    async def call(self, account: AwsAccount, deadline_s: float = 20.0) -> None:
        client = await account.client("dynamodb")
        await account.call(client.list_tables, deadline_s=deadline_s, unreachable=StoreUnreachable)

    async def test_what_sts_is_asked_for(self, front: Front) -> None:
        secrets = held()
        account = await AwsAccount.open(
            surroundings(secrets=secrets),
            grants=lambda found, region: dynamodb_grants(found.account_id, region, "t", "acme", shared=False),
        )
        client = await account.client("sts")
        await account.call(client.get_caller_identity, deadline_s=20, unreachable=StoreUnreachable)
        asked = front.assumed[0]
        assert asked["RoleSessionName"] == "nagaya-acme"
        assert asked["ExternalId"] == json.loads(secrets["aws-connection"])["external_id"]
        assert asked["DurationSeconds"] == "3600"
        assert json.loads(asked["Policy"])["Statement"][0]["Resource"].endswith(f":{ACCOUNT}:table/t")
        await account.close()

    async def test_credentials_that_end_while_calls_run_are_renewed_and_no_call_fails(self, front: Front) -> None:
        front.sts_lifetime_s = 1.0
        account = await AwsAccount.open(surroundings(secrets=held()))
        client = await account.client("sts")

        async def work() -> None:
            while len(set(front.keys)) < 4:
                await account.call(client.get_caller_identity, deadline_s=20, unreachable=StoreUnreachable)

        async with asyncio.timeout(60):
            await asyncio.gather(*(work() for _ in range(20)))
        # Each of the twenty carried the same ones, and one renewal was made for them all.
        assert len(front.assumed) <= 6
        await account.close()

    async def test_credentials_that_aws_ended_early_are_got_anew_once(self, front: Front) -> None:
        account = await AwsAccount.open(surroundings(secrets=held()))
        client = await account.client("sts")
        await account.call(client.get_caller_identity, deadline_s=20, unreachable=StoreUnreachable)
        front.script = ["expired"]
        await account.call(client.get_caller_identity, deadline_s=20, unreachable=StoreUnreachable)
        assert len(front.assumed) == 2
        front.script = ["expired", "expired"]
        with pytest.raises(CloudCredentialsRefused, match="ExpiredToken"):
            await account.call(client.get_caller_identity, deadline_s=20, unreachable=StoreUnreachable)
        await account.close()

    @pytest.mark.parametrize(
        ("code", "error"), [("AccessDenied", CloudCredentialsRefused), ("InternalFailure", CloudUnreachable)]
    )
    async def test_an_sts_that_fails_is_told_from_one_that_refuses(self, front: Front, code: str, error: type) -> None:
        front.sts_fails = code
        account = await AwsAccount.open(surroundings(secrets=held()))
        with pytest.raises(error):
            await self.call(account)
        await account.close()

    async def test_a_suspended_tenants_account_is_closed_also_for_what_was_opened_before(self, front: Front) -> None:
        account = await AwsAccount.open(surroundings(secrets=held()))
        client = await account.client("sts")
        await account.call(client.get_caller_identity, deadline_s=20, unreachable=StoreUnreachable)
        await account.close()
        await account.close()
        with pytest.raises(SessionClosed):
            await account.call(client.get_caller_identity, deadline_s=20, unreachable=StoreUnreachable)
        with pytest.raises(SessionClosed):
            await account.client("kms")

    async def test_without_any_credentials_the_operator_is_told(self, front, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        account = await AwsAccount.open(surroundings(), region=REGION)
        with pytest.raises(CloudCredentialsRefused, match="this machine has none"):
            await self.call(account)
        await account.close()
        account = await AwsAccount.open(surroundings(secrets=held()))
        with pytest.raises(CloudCredentialsRefused, match="this machine has none"):
            await self.call(account)
        await account.close()

    async def test_an_address_where_nobody_listens_is_unreachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        point_at(monkeypatch, "http://127.0.0.1:9")
        account = await AwsAccount.open(surroundings(), region=REGION)
        with pytest.raises(StoreUnreachable):
            await self.call(account, deadline_s=0.3)
        await account.close()
        account = await AwsAccount.open(surroundings(secrets=held()))
        with pytest.raises(CloudUnreachable):
            await self.call(account)
        await account.close()

    async def test_a_further_tenant_shares_what_the_first_one_read(
        self, front: Front, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[str] = []
        trusted: list[object] = []
        load, trust = JSONFileLoader._load_file, httpsession.create_urllib3_context

        def loading(loader: JSONFileLoader, path: str, open_method: object) -> object:
            found = load(loader, path, open_method)
            if found is not None:
                read.append(path)
            return found

        def trusting(*given: object, **named: object) -> object:
            trusted.append(trust(*given, **named))
            return trusted[-1]

        monkeypatch.setattr(JSONFileLoader, "_load_file", loading)
        monkeypatch.setattr(httpsession, "create_urllib3_context", trusting)
        aws._loader.cache_clear()
        aws_tls._context.cache_clear()
        accounts = [await AwsAccount.open(surroundings(f"tenant-{number}", secrets=held())) for number in range(6)]
        await self.call(accounts[0])
        assert any("dynamodb" in path for path in read)
        assert len(trusted) == 1
        before = len(read)
        for account in accounts[1:]:
            await self.call(account)
        assert read[before:] == []
        assert len(trusted) == 1
        clients = [await account.client("dynamodb") for account in accounts]
        assert len({id(client.meta.service_model._service_description) for client in clients}) == 1
        for account in accounts:
            await account.close()

    async def test_a_closed_account_leaves_nothing_in_memory(self, front: Front) -> None:
        account = await AwsAccount.open(surroundings(secrets=held()))
        await self.call(account)
        left = weakref.ref(await account.client("dynamodb")), weakref.ref(account._credentials)
        await account.close()
        del account
        gc.collect()
        assert [reference() for reference in left] == [None, None]


@pytest.mark.parametrize(
    "url",
    [
        f"dynamodb://{REGION}", f"dynamodb://{REGION}/a", f"dynamodb://{REGION}/tbl/../x", f"dynamodb://{REGION}/tbl?x=1",
        f"dynamodb://{REGION}/tbl?shared=1", f"dynamo://{REGION}/tbl",
    ],
)  # fmt: skip
async def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidValue):
        await open_house(url, surroundings())


async def test_a_store_outside_the_tenants_regions_is_refused() -> None:
    with pytest.raises(RegionRefused):
        await open_house("dynamodb://us-east-1/tbl", surroundings(regions=(REGION,)))


def test_the_ciphertext_is_blamed_where_kms_blames_it() -> None:
    from botocore.exceptions import ClientError

    from nagaya.clouds.aws_errors import Trouble, trouble_of

    words = "The ciphertext refers to a customer master key that does not exist, or you are not allowed to access."
    error = ClientError({"Error": {"Code": "AccessDeniedException", "Message": words}}, "Decrypt")
    assert trouble_of(error) is Trouble.BROKEN
    for message, trouble in (("x is pending deletion.", Trouble.DESTROYED), ("x is pending import.", Trouble.DISABLED)):
        error = ClientError({"Error": {"Code": "KMSInvalidStateException", "Message": message}}, "Decrypt")
        assert trouble_of(error) is trouble
