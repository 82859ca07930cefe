"""What AWS may answer beside the usual, each told apart: races between servers, refusals, odd answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from nagaya.clouds.aws import AwsAccount
from nagaya.clouds.aws_errors import AwsRefusal, Trouble, trouble_of, without_credentials
from nagaya.clouds.aws_role import ROLE_DENIED, AwsConnection, new_external_id
from nagaya.errors import (
    CloudCredentialsRefused,
    Conflict,
    KeyAccessRefused,
    KeyDestroyed,
    KeyDisabled,
    KeyMissing,
    NotFound,
    PermissionMissing,
    SealBroken,
    StoreNewer,
    StoreUnreachable,
    TenantExists,
)
from nagaya.keys.awskms import AwsKeys, OwnedAwsKeys, kms_grants, open_keys
from nagaya.secrets.aws import AwsSecrets
from nagaya.stores.driver import Delete, Put
from nagaya.stores.dynamodb import DynamoHouse
from nagaya.stores.dynamodb_store import Table
from nagaya.testing.keys import KeyContract
from parts.aws import REGION, surroundings

ACME = KeyContract.ACME


def error(code: str, message: str = "", status: int = 400, **more: Any) -> ClientError:
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}, **more}
    return ClientError(answer, "PutItem")


class Scripted:
    """A client whose answers are a list: what each call gives or raises. ``asked`` keeps the operations."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __getattr__(self, operation: str) -> Any:
        async def call(**request: Any) -> Any:
            self.asked.append(operation)
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def account(service: str, client: Scripted) -> AwsAccount:
    made = AwsAccount.__new__(AwsAccount)
    made.room, made.region = "acme", REGION
    made._closed, made._credentials, made._clients = False, None, {service: client}
    return made


def owned(*answers: Any) -> tuple[OwnedAwsKeys, Scripted]:
    client = Scripted(*answers)
    return OwnedAwsKeys(account("kms", client), "alias/nagaya", deletion_days=7), client


ENABLED = {"KeyMetadata": {"KeyId": "k", "KeyState": "Enabled"}}
UNWRAPPED = {"Plaintext": b"short"}


class TestKeys:
    async def test_a_key_of_another_length_is_none_of_ours(self) -> None:
        keys = AwsKeys(account("kms", Scripted(UNWRAPPED)), "k")
        with pytest.raises(SealBroken):
            await keys.unwrap(b"wrapped", ACME)

    async def test_what_nobody_foresaw_is_not_swallowed(self) -> None:
        keys = AwsKeys(account("kms", Scripted(error("OddException"))), "k")
        with pytest.raises(AwsRefusal) as refusal:
            await keys.generate(ACME)
        assert refusal.value.trouble is Trouble.OTHER

    async def test_a_key_that_another_server_destroyed_first_is_destroyed(self) -> None:
        keys, _ = owned(ENABLED, error("KMSInvalidStateException", "k is pending deletion."))
        await keys.destroy("acme-key")
        keys, _ = owned(ENABLED, error("DisabledException"))
        with pytest.raises(KeyDisabled):
            await keys.destroy("acme-key")
        keys, _ = owned(ENABLED, error("KMSInvalidStateException", "k is pending deletion."))
        with pytest.raises(KeyDestroyed):
            await keys.enable("acme-key")

    async def test_a_state_that_cannot_be_read_is_not_called_absent(self) -> None:
        keys, _ = owned(error("DisabledException"))
        with pytest.raises(KeyDisabled):
            await keys.status("acme-key")
        keys, _ = owned(error("AccessDeniedException", "x is not authorized to perform: kms:DescribeKey on y"))
        with pytest.raises(PermissionMissing, match="kms:DescribeKey"):
            await keys.status("acme-key")

    async def test_a_name_that_is_none_asks_nothing(self) -> None:
        keys, client = owned()
        with pytest.raises(NotFound):
            await keys.status("../up")
        assert client.asked == []

    async def test_of_two_servers_that_make_a_key_the_second_takes_the_firsts(self) -> None:
        wrapped = {"Plaintext": b"p" * 32, "CiphertextBlob": b"w"}
        keys, client = owned(error("NotFoundException"), ENABLED, error("AlreadyExistsException"), {}, wrapped)
        assert await keys.generate(ACME) == (b"p" * 32, b"w")
        assert client.asked[3] == "schedule_key_deletion"
        keys, client = owned(error("NotFoundException"), ENABLED, error("NotFoundException"), {})
        with pytest.raises(KeyMissing):
            await keys.generate(ACME)

    @pytest.mark.parametrize(
        ("key", "resource"),
        [
            ("k", f"arn:aws:kms:{REGION}:1:key/k"), ("alias/a", f"arn:aws:kms:{REGION}:1:key/*"),
            (f"arn:aws:kms:{REGION}:2:key/k", f"arn:aws:kms:{REGION}:2:key/k"),
            (f"arn:aws:kms:{REGION}:2:alias/a", f"arn:aws:kms:{REGION}:2:key/*"),
        ],
    )  # fmt: skip
    def test_a_tenants_session_may_use_its_key_for_itself_alone(self, key: str, resource: str) -> None:
        held = AwsConnection(role_arn="arn:aws:iam::1:role/x", external_id="", account_id="1")
        (grant,) = kms_grants(held, REGION, key, "acme")
        assert grant["Resource"] == resource
        assert grant["Condition"]["StringEquals"]["kms:EncryptionContext:tenant"] == "acme"
        assert ("kms:RequestAlias" in grant["Condition"]["StringEquals"]) == ("alias/" in key)

    def test_in_other_clouds_of_aws_the_session_names_the_key_as_that_cloud_does(self) -> None:
        held = AwsConnection(role_arn="arn:aws-cn:iam::1:role/x", external_id="", account_id="1")
        for key, named in (("k", "key/k"), ("alias/a", "key/*")):
            (grant,) = kms_grants(held, "cn-north-1", key, "acme")
            assert grant["Resource"] == f"arn:aws-cn:kms:cn-north-1:1:{named}"

    @pytest.mark.parametrize(
        ("answer", "needs"),
        [
            (error("AccessDeniedException", "x is not authorized to perform: kms:Decrypt on y"), "kms:Decrypt"),
            (CloudCredentialsRefused(room="acme", detail=ROLE_DENIED), "sts:AssumeRole"),
        ],
    )
    async def test_who_takes_the_permission_or_the_role_away_has_revoked_the_key(
        self, answer: Exception, needs: str
    ) -> None:
        keys = AwsKeys(account("kms", Scripted(answer)), "k")
        with pytest.raises(KeyAccessRefused, match=needs) as revoked:
            await keys.unwrap(b"wrapped", ACME)
        assert isinstance(revoked.value, KeyDisabled)

    async def test_credentials_that_this_machine_lacks_are_no_revocation(self) -> None:
        keys = AwsKeys(
            account("kms", Scripted(CloudCredentialsRefused(room="acme", detail="this machine has none"))), "k"
        )
        with pytest.raises(CloudCredentialsRefused):
            await keys.unwrap(b"wrapped", ACME)

    async def test_a_tenants_own_key_is_used_by_a_session_for_that_key(self) -> None:
        secret = {"role_arn": "arn:aws:iam::000000000000:role/x", "external_id": new_external_id(), "region": REGION}
        held = {"aws-connection": json.dumps(secret).encode()}
        keys = await open_keys("awskms://k", surroundings(secrets=held))
        assert keys._account._policy is not None
        (statement,) = json.loads(keys._account._policy)["Statement"]
        assert statement["Resource"] == f"arn:aws:kms:{REGION}:000000000000:key/k"
        assert not keys._account.renew()
        await keys.close()


LEAVING = error("InvalidRequestException", "it is scheduled for deletion")
GONE = error("ResourceNotFoundException")


def secrets(*answers: Any) -> tuple[AwsSecrets, Scripted]:
    client = Scripted(*answers)
    return AwsSecrets(account("secretsmanager", client)), client


class TestSecrets:
    async def test_a_secret_that_two_set_at_once_holds_one_of_both(self) -> None:
        held, client = secrets(GONE, error("ResourceExistsException"), {})
        await held.put("x", b"1")
        assert client.asked == ["put_secret_value", "create_secret", "put_secret_value"]

    async def test_a_secret_that_is_never_quite_gone_is_a_conflict(self) -> None:
        held, _ = secrets(*[LEAVING, {}] * 3, LEAVING, GONE)
        with pytest.raises(Conflict):
            await held.put("x", b"1")

    async def test_one_that_waits_for_its_deletion_is_none(self) -> None:
        held, client = secrets(LEAVING, LEAVING, LEAVING, LEAVING, {})
        assert await held.get("x") is None
        await held.delete("x")
        await held.put("x", b"1")
        assert client.answers == []

    async def test_what_is_refused_is_told(self) -> None:
        odd = error("OddException")
        for work, answers in (
            (lambda held: held.get("x"), [odd]),
            (lambda held: held.put("x", b"1"), [odd]),
            (lambda held: held.put("x", b"1"), [GONE, odd]),
            (lambda held: held.put("x", b"1"), [LEAVING, odd]),
            (lambda held: held.delete("x"), [odd]),
        ):
            held, _ = secrets(*answers)
            with pytest.raises(AwsRefusal):
                await work(held)

    async def test_names_of_another_tenant_are_left_out_whatever_the_filter_gave(self) -> None:
        page = {"SecretList": [{"Name": "tenant/acme/b"}, {"Name": "tenant/acme-corp/x"}], "NextToken": "more"}
        held, _ = secrets(page, {"SecretList": [{"Name": "tenant/acme/a"}]})
        assert await held.names() == ["a", "b"]


TABLE = {
    "Table": {
        "TableStatus": "ACTIVE",
        "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
    }
}
CREATING = {"Table": {**TABLE["Table"], "TableStatus": "CREATING"}}
DELETING = {"Table": {**TABLE["Table"], "TableStatus": "DELETING"}}
ROOM = {"Item": {"format": {"N": "1"}, "made": {"B": b"x"}}}
REFUSED = error("ConditionalCheckFailedException")
BUSY = error("ResourceInUseException")
ODD = error("OddException")


def house(*answers: Any, exact: bool = True) -> tuple[DynamoHouse, Scripted]:
    client = Scripted(*answers)
    return DynamoHouse(account("dynamodb", client), "tbl", exact=exact, deadline_s=20.0), client


class TestHouses:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nagaya.stores.dynamodb._POLL_S", 0.0)

    async def test_a_table_that_another_server_is_making_is_waited_for(self) -> None:
        rooms, client = house(GONE, BUSY, CREATING, TABLE, {})
        await rooms.create("acme")
        assert client.asked[:4] == ["describe_table", "create_table", "describe_table", "describe_table"]

    async def test_a_table_that_never_comes_or_goes_ends_with_a_deadline(self, monkeypatch) -> None:
        monkeypatch.setattr("nagaya.stores.dynamodb.TABLE_S", -1.0)
        rooms, _ = house(CREATING)
        with pytest.raises(StoreUnreachable):
            await rooms.create("acme")
        rooms, _ = house(DELETING, exact=False)
        with pytest.raises(StoreUnreachable):
            await rooms.destroy("acme")

    async def test_a_table_that_goes_is_waited_for(self) -> None:
        rooms, client = house(TABLE, BUSY, TABLE, {}, DELETING, GONE, exact=False)
        await rooms.destroy("acme")
        assert client.answers == []
        rooms, _ = house(TABLE, GONE, exact=False)
        await rooms.destroy("acme")

    async def test_what_is_refused_is_told(self) -> None:
        for answers, exact in (([GONE, ODD], True), ([TABLE, ODD], True), ([TABLE, ODD], False)):
            rooms, _ = house(*answers, exact=exact)
            with pytest.raises(AwsRefusal):
                await (rooms.create("acme") if exact else rooms.destroy("acme"))

    async def test_a_room_of_a_table_that_is_gone_is_gone(self) -> None:
        rooms, _ = house(GONE, GONE, GONE)
        assert not await rooms.exists("acme")
        await rooms.destroy("acme")
        assert await rooms.size_bytes("acme") == 0

    async def test_a_room_of_a_newer_program_is_left_alone(self) -> None:
        rooms, _ = house({"Item": {"format": {"N": "2"}, "made": {"B": b"x"}}})
        with pytest.raises(StoreNewer):
            await rooms.open("acme")

    async def test_a_room_half_destroyed_does_not_open_and_is_not_made_anew(self) -> None:
        rooms, _ = house({"Item": {**ROOM["Item"], "leaving": {"BOOL": True}}}, TABLE, REFUSED)
        assert not await rooms.exists("acme")
        with pytest.raises(TenantExists):
            await rooms.create("acme")

    async def test_what_a_busy_table_left_undone_is_sent_again(self) -> None:
        left = {"UnprocessedItems": {"tbl": [{"DeleteRequest": {"Key": {}}}]}}
        rooms, client = house(ROOM, left, {})
        store = await rooms.open("acme")
        await store._table.delete_many([{}])
        assert client.asked[1:] == ["batch_write_item"] * 2

    async def test_a_store_passes_on_what_it_does_not_know(self) -> None:
        rooms, _ = house(ROOM, ODD, ODD, {}, ODD)
        store = await rooms.open("acme")
        with pytest.raises(AwsRefusal):
            await store.write("p", [Delete(b"k", 1)])
        with pytest.raises(AwsRefusal):
            await store.write("p", [Put(b"k", b"")])
        cancelled = error("TransactionCanceledException", CancellationReasons=[{"Code": "ValidationError"}])
        rooms, _ = house(ROOM, cancelled)
        with pytest.raises(StoreUnreachable):
            await (await rooms.open("acme")).write("p", [Put(b"k", b"")])

    async def test_only_so_many_partitions_are_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nagaya.stores.dynamodb_store.MAX_KNOWN", 2)
        rooms, _ = house(ROOM, {}, {}, {})
        store = await rooms.open("acme")
        for name in "abc":
            await store.write(name, [Put(b"k", b"x")])
        assert list(store._known) == ["b", "c"]


def test_what_a_cancelled_transaction_means() -> None:
    def cancelled(*codes: str) -> Trouble:
        return trouble_of(error("TransactionCanceledException", CancellationReasons=[{"Code": code} for code in codes]))

    assert cancelled("None", "ConditionalCheckFailed", "TransactionConflict") is Trouble.CANCELLED
    assert cancelled("TransactionConflict", "None") is Trouble.BUSY
    assert cancelled("ThrottlingError", "TransactionConflict") is Trouble.THROTTLED
    assert cancelled("ValidationError") is Trouble.CANCELLED
    assert trouble_of(error("Unheard", status=503)) is Trouble.AWAY
    assert without_credentials(BotoCoreError(), "acme") is None


async def test_what_is_wrong_on_this_side_is_not_repeated() -> None:
    with pytest.raises(BotoCoreError):
        client = Scripted(BotoCoreError())
        await account("x", client).call(client.anything, deadline_s=1, unreachable=StoreUnreachable)
    client = Scripted(error("AccessDeniedException"))
    with pytest.raises(PermissionMissing, match="PutItem"):
        await account("x", client).call(client.anything, deadline_s=1, unreachable=StoreUnreachable)


def left_over(count: int) -> dict[str, Any]:
    return {"UnprocessedItems": {"tbl": [{"DeleteRequest": {"Key": {"pk": {"S": "p"}, "sk": {"B": b"k"}}}}] * count}}


async def test_what_a_batch_left_over_is_sent_again_and_not_for_ever() -> None:
    keys = [{"pk": {"S": "p"}, "sk": {"B": b"k"}}] * 3
    client = Scripted(left_over(2), left_over(1), {})
    await Table(account("dynamodb", client), client, "tbl", 20.0).delete_many(keys)
    assert client.answers == []
    client = Scripted(*[left_over(3)] * 1000)
    async with asyncio.timeout(20):
        with pytest.raises(StoreUnreachable):
            await Table(account("dynamodb", client), client, "tbl", 0.2).delete_many(keys)
    assert len(client.asked) < 10
