"""A tenant's key is disabled in the key service: until when two servers still read what it sealed.

Every tenant has a KMS key of its own (in the AWS stand-in), and a canary reads one conversation from each of two
servers, a hundred times a second. Without a notice the key is disabled in KMS behind Nagaya's back, right after both
servers fetched it: the worst moment. With one it is revoked through the first server, and the second hears of it over
Valkey. The figure is the last read that any server answered, after KMS acknowledged. Run:
``python -m benchmarks.revocation [--quick]``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
from aiobotocore.session import get_session

from benchmarks.figures import Row, at_most, main, row
from benchmarks.servers import serving
from nagaya import Message, Nagaya
from nagaya.settings import Settings
from parts import valkey
from parts.ministack import REGION, running

TENANT = "bench-revoked"
KEYS = f"awskms://alias/bench?region={REGION}&owned=true"
ALIAS = f"alias/bench-{TENANT}"
PAUSE_S = 0.01
QUIET_S = 2.0
"""A canary that was refused for so long reads no more."""
LIMIT_S = 45.0


class Canary:
    """Reads a conversation again and again from one server."""

    def __init__(self, port: int, path: str, token: str) -> None:
        self._url = f"http://127.0.0.1:{port}{path}"
        self._headers = {"authorization": f"Bearer {token}"}
        self.read_at_s = 0.0
        self.refused_at_s = 0.0
        self.code = ""

    async def sing(self, client: httpx.AsyncClient) -> None:
        while True:
            answer = await client.get(self._url, headers=self._headers)
            now_s = time.perf_counter()
            if answer.status_code == 200:
                self.read_at_s = now_s
            else:
                self.refused_at_s = now_s
                self.code = str(answer.json()["error"]["code"])
            await asyncio.sleep(PAUSE_S)

    async def until_it_reads(self) -> None:
        asked_s = time.perf_counter()
        await _until(lambda: self.read_at_s > asked_s)

    async def until_silent(self) -> None:
        """Until it has been refused for a while, for the right reason."""
        await _until(lambda: self.refused_at_s > self.read_at_s + QUIET_S)
        if self.code != "key_disabled":
            raise RuntimeError(f"refused for another reason: {self.code}")


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():
            await asyncio.sleep(PAUSE_S)


Act = Callable[[], Awaitable[object]]


async def prepare(settings: Settings) -> tuple[str, str, str]:
    """An operator's API key, the tenant's token, and the path of what the canaries read."""
    async with Nagaya.open(settings=settings) as nagaya:
        operator = await nagaya.tenants.create_api_key(None, name="bench", user="op", role="operator")
        await nagaya.tenants.create(TENANT, name="Bench")
        token = await nagaya.tenants.mint(TENANT, "mio", lifetime_s=3600)
        async with nagaya.session(await nagaya.enter(token)) as tenant:
            chat = await tenant.conversations.create()
            await tenant.conversations.append(chat.id, Message.user("still there"))
    return operator.api_key, token, f"/v1/conversations/{chat.id}/items?limit=1"


async def last_reads_s(canaries: Sequence[Canary], revoke: Act, restore: Act, rounds: int) -> list[float]:
    """Seconds from the acknowledged revocation to the last read, in each round: of the server that read longer."""
    found = []
    async with httpx.AsyncClient(timeout=15, trust_env=False) as client:
        singing = [asyncio.create_task(canary.sing(client)) for canary in canaries]
        try:
            for _ in range(rounds):
                await asyncio.gather(*(canary.until_it_reads() for canary in canaries))
                await revoke()
                revoked_s = time.perf_counter()
                await asyncio.gather(*(canary.until_silent() for canary in canaries))
                found.append(max(0.0, *(canary.read_at_s - revoked_s for canary in canaries)))
                await restore()
        finally:
            for task in singing:
                task.cancel()
            await asyncio.gather(*singing, return_exceptions=True)
    return found


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The rows of revocation."""
    data = folder / "data"
    environment = {"NAGAYA_PLATFORM_KEYS": KEYS, "NAGAYA_ALLOWED_HOSTS": "127.0.0.1"}
    with ExitStack() as parts:
        stand_in = parts.enter_context(running())
        os.environ |= {
            "AWS_ENDPOINT_URL": stand_in.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        notices = parts.enter_context(valkey.running(folder)).url()
        settings = Settings(data=str(data), platform_keys=KEYS, allowed_hosts=("127.0.0.1",))
        operator, token, path = await prepare(settings)

        async def of_two(revoke_by: Callable[[int], tuple[Act, Act]], rounds: int, **more: str) -> list[float]:
            with serving(data, **environment, **more) as (one, _), serving(data, **environment, **more) as (other, _):
                canaries = [Canary(port, path, token) for port in (one, other)]
                return await last_reads_s(canaries, *revoke_by(one), rounds)

        async with get_session().create_client("kms", region_name=REGION) as kms:
            key = (await kms.describe_key(KeyId=ALIAS))["KeyMetadata"]["KeyId"]

            def in_the_service(_: int) -> tuple[Act, Act]:
                return lambda: kms.disable_key(KeyId=key), lambda: kms.enable_key(KeyId=key)

            unheard_s = await of_two(in_the_service, 1 if quick else 3)
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {operator}"}, trust_env=False) as admin:

            def through(port: int) -> tuple[Act, Act]:
                async def act(verb: str) -> None:
                    url = f"http://127.0.0.1:{port}/admin/keys/{TENANT}/{verb}"
                    (await admin.post(url, timeout=15)).raise_for_status()

                return lambda: act("revoke"), lambda: act("restore")

            heard_s = await of_two(through, 3 if quick else 10, NAGAYA_REDIS=notices)
    job = "a key disabled in the key service (KMS stand-in): the last read of two servers"
    return [
        row(f"{job}, nobody told", "–", at_most(max(unheard_s), 30, "{:.1f} s"), f"the longest of {len(unheard_s)}"),
        row(
            f"{job}, revoked through one of them, notices over Valkey",
            "–",
            at_most(max(heard_s), 1, "{:.2f} s"),
            f"the longest of {len(heard_s)}; after the answer to the revocation",
        ),
    ]


if __name__ == "__main__":
    main(measure)
