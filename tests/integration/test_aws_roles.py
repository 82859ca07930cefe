"""Roles as ministack enforces them: STS, trust policies with an ExternalId, session policies."""

from __future__ import annotations

import itertools
import json

import aiobotocore.session
import pytest

from nagaya.clouds.aws_role import new_external_id
from nagaya.errors import CloudCredentialsRefused, PermissionMissing, SessionClosed, StoreDamaged, StoreUnreachable
from nagaya.stores.dynamodb import open_house
from nagaya.stores.store import Store
from parts.aws import REGION, new_table, point_at, surroundings

pytest_plugins = ["parts.ministack"]

ACCOUNT = "000000000000"
_numbers = itertools.count(1)


def connection(external_id: str, **fields: str) -> bytes:
    role = f"arn:aws:iam::{ACCOUNT}:role/nagaya"
    return json.dumps({"role_arn": role, "external_id": external_id, "region": REGION, **fields}).encode()


class TestRoles:
    @pytest.fixture
    async def role(self, ministack, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
        """The ARN of a role that may do everything with DynamoDB, and the ExternalId that opens it."""
        point_at(monkeypatch, ministack.url)
        external_id = new_external_id()
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
                    "Action": "sts:AssumeRole",
                    "Condition": {"StringEquals": {"sts:ExternalId": external_id}},
                }
            ],
        }
        allow = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "dynamodb:*", "Resource": "*"}]}
        name = f"nagaya-{next(_numbers)}"
        async with aiobotocore.session.get_session().create_client("iam", region_name=REGION) as iam:
            made = await iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
            await iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=json.dumps(allow))
        return made["Role"]["Arn"], external_id

    async def test_a_tenants_store_lies_in_its_own_account(self, role: tuple[str, str]) -> None:
        table = new_table()
        secrets = {"aws-connection": connection(role[1], role_arn=role[0], dynamodb_table_name=table)}
        for url in (f"dynamodb://{REGION}/{table}", f"dynamodb://{REGION}"):
            house = await open_house(url, surroundings(secrets=secrets))
            await house.create("acme")
            store = Store(await house.open("acme"))
            await store.put("p", b"k", b"1")
            assert await store.get("p", b"k") is not None
            await house.destroy("acme")
            assert await house.size_bytes("acme") == 0
            await house.close()
            with pytest.raises(SessionClosed):
                await store.get("p", b"k")

    async def test_another_external_id_does_not_open_the_account(self, role: tuple[str, str]) -> None:
        secrets = {"aws-connection": connection(new_external_id(), role_arn=role[0])}
        house = await open_house(f"dynamodb://{REGION}/{new_table()}", surroundings(secrets=secrets))
        with pytest.raises(CloudCredentialsRefused, match="AssumeRole was denied"):
            await house.create("acme")
        await house.close()

    async def test_a_role_that_may_do_more_gives_the_session_no_more(self, role: tuple[str, str]) -> None:
        foreign = new_table()
        platform = await open_house(f"dynamodb://{REGION}/{foreign}", surroundings("globex"))
        await platform.create("globex")
        await Store(await platform.open("globex")).put("p", b"k", b"globex's")
        secrets = {"aws-connection": connection(role[1], role_arn=role[0])}
        house = await open_house(f"dynamodb://{REGION}/{new_table()}", surroundings(secrets=secrets))
        await house.create("acme")
        client = await house._account.client("dynamodb")
        for operation, request in (
            (client.get_item, {"TableName": f"{foreign}-globex", "Key": {"pk": {"S": "globex#p"}, "sk": {"B": b"k"}}}),
            (client.query, {
                "TableName": f"{foreign}-globex", "KeyConditionExpression": "pk = :p",
                "ExpressionAttributeValues": {":p": {"S": "globex#p"}},
            }),
            (client.scan, {"TableName": f"{foreign}-globex"}),
            (client.delete_table, {"TableName": f"{foreign}-globex"}),
        ):  # fmt: skip
            with pytest.raises(PermissionMissing, match="dynamodb:"):
                await house._account.call(operation, deadline_s=2, unreachable=StoreUnreachable, **request)
        # Nor does the tenant's house lead to another room, whatever it is asked for.
        with pytest.raises(PermissionMissing):
            await house.open("globex")
        await house.close()
        await platform.close()

    async def test_a_missing_permission_is_named(self, ministack, monkeypatch, role: tuple[str, str]) -> None:
        async with aiobotocore.session.get_session().create_client("iam", region_name=REGION) as iam:
            allow = {"Effect": "Allow", "Action": ["dynamodb:DescribeTable"], "Resource": "*"}
            policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
            name = role[0].rpartition("/")[2]
            await iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=policy)
        secrets = {"aws-connection": connection(role[1], role_arn=role[0])}
        house = await open_house(f"dynamodb://{REGION}/{new_table()}", surroundings(secrets=secrets))
        with pytest.raises(PermissionMissing, match="dynamodb:CreateTable"):
            await house.create("acme")
        await house.close()

    async def test_a_table_that_the_customer_made_is_used_and_only_its_rows_are_removed(
        self, ministack, role: tuple[str, str]
    ) -> None:
        table = new_table()
        for key, kind in (("S", "B"), ("S", "S")):
            name = f"{table}{kind}"
            ministack.call(
                "DynamoDB_20120810", "CreateTable", TableName=name, BillingMode="PAY_PER_REQUEST",
                KeySchema=[
                    {"AttributeName": "pk", "KeyType": "HASH"},
                    {"AttributeName": "sk" if kind == "B" else "id", "KeyType": "RANGE"},
                ],
                AttributeDefinitions=[
                    {"AttributeName": "pk", "AttributeType": key},
                    {"AttributeName": "sk" if kind == "B" else "id", "AttributeType": kind},
                ],
            )  # fmt: skip
        secrets = {"aws-connection": connection(role[1], role_arn=role[0], dynamodb_table_name=f"{table}B")}
        house = await open_house(f"dynamodb://{REGION}", surroundings(secrets=secrets))
        await house.create("acme")
        await Store(await house.open("acme")).put("p", b"k", b"1")
        await house.destroy("acme")
        assert ministack.call("DynamoDB_20120810", "Scan", TableName=f"{table}B")["Count"] == 0
        await house.close()
        odd = await open_house(f"dynamodb://{REGION}/{table}S?shared=true", surroundings())
        with pytest.raises(StoreDamaged):
            await odd.create("acme")
        await odd.close()
