"""An Amazon SQS queue as a way in for jobs: a message becomes the same durable job that a call would make.

A message is deleted once its job lies in the jobs database, and not before; SQS may deliver it twice, and twice the
same message is one job. What is refused is given back at once, so that the queue's redrive policy moves it to the
dead-letter queue; a queue without one is not listened to, because there a refused message would come back for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import structlog

from nagaya.adapters import Surroundings
from nagaya.clouds.aws import AwsAccount, url_parts
from nagaya.clouds.aws_errors import AwsRefusal
from nagaya.clouds.aws_role import AwsConnection, check_region
from nagaya.errors import InvalidValue, JobRefused, JobsUnreachable, NagayaError
from nagaya.jobs.driver import Jobs
from nagaya.jobs.message import claimed_tenant, read_order, read_signed_order
from nagaya.jobs.record import JobSigner
from nagaya.kernel.clock import Clock
from nagaya.kernel.ended import ended
from nagaya.tenancy.tenant import Tenant

LONG_POLL_S: Final = 20
VISIBLE_S: Final = 30
"""A message that is being worked on is hidden for so long; renewed every third of it."""

AT_ONCE: Final = 10
CALL_S: Final = 10.0
_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0

_log = structlog.get_logger(__name__)

FindTenant = Callable[[str], Awaitable[Tenant]]
"""The registry's: the tenant with an id, or ``NotFound``."""


class SqsIngress:
    """Listens to one queue. ``owner`` is the tenant it belongs to; None where several share it and messages are
    signed. Only ``kinds`` may be asked for. To be used in one event loop."""

    def __init__(
        self,
        account: AwsAccount,
        queue_url: str,
        jobs: Jobs,
        find_tenant: FindTenant,
        signer: JobSigner,
        clock: Clock,
        *,
        owner: str | None,
        kinds: frozenset[str],
        visible_s: int | None = None,
        poll_s: int | None = None,
    ) -> None:
        self._account = account
        self._queue_url = queue_url
        self._jobs = jobs
        self._find_tenant = find_tenant
        self._signer = signer
        self._clock = clock
        self._owner = owner
        self._kinds = kinds
        self._visible_s = VISIBLE_S if visible_s is None else visible_s
        self._poll_s = LONG_POLL_S if poll_s is None else poll_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen. May be repeated."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._listen())

    async def close(self) -> None:
        """Listen no longer. What was received and not taken appears again on the queue. May be repeated."""
        task, self._task = self._task, None
        if task is not None:
            await ended([task])
        await self._account.close()

    async def _listen(self) -> None:
        pause_s = _PAUSE_S
        while True:
            try:
                messages = await self._receive()
                await asyncio.gather(*(self._handle(message) for message in messages))
            except (NagayaError, AwsRefusal) as failed:
                code = failed.code if isinstance(failed, NagayaError) else str(failed)
                _log.warning("queue not heard", action="jobs.queue_failed", code=code)
            except Exception as failed:
                # Whatever it is: a queue that is heard no more, without a word, would be worse.
                _log.error("queue not heard", action="jobs.queue_failed", code=type(failed).__name__)
            else:
                pause_s = _PAUSE_S
                continue
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _receive(self) -> Sequence[Mapping[str, Any]]:
        answer = await self._call(
            "receive_message",
            deadline_s=self._poll_s + CALL_S,
            MaxNumberOfMessages=AT_ONCE,
            WaitTimeSeconds=self._poll_s,
            VisibilityTimeout=self._visible_s,
        )
        messages: Sequence[Mapping[str, Any]] = answer.get("Messages") or ()
        return messages

    async def _handle(self, message: Mapping[str, Any]) -> None:
        """Take one message to its end. Its failure is its own and costs the others nothing."""
        handle = message["ReceiptHandle"]
        hiding = asyncio.ensure_future(self._hide(handle))
        try:
            await self._take(str(message["MessageId"]), str(message["Body"]))
        except NagayaError as failed:
            said = {"message": message["MessageId"], "code": failed.code}
            if failed.status >= 500 or failed.status == 429:
                # Such as a jobs database that is away: the message comes back by itself.
                _log.warning("message not taken", action="jobs.message_failed", **said)
            else:
                _log.warning("message refused", action="jobs.message_refused", **said)
                await self._hide_for(handle, 0)
        except Exception as failed:
            # It comes back by itself, and in the end goes to the dead letters; the others must not suffer for it.
            said = {"message": message["MessageId"], "code": type(failed).__name__}
            _log.error("message not taken", action="jobs.message_failed", **said)
        else:
            with contextlib.suppress(NagayaError, AwsRefusal):
                # Where this fails the message comes again and finds its job.
                await self._call("delete_message", deadline_s=CALL_S, ReceiptHandle=handle)
        finally:
            hiding.cancel()
            await asyncio.gather(hiding, return_exceptions=True)

    async def _take(self, message_id: str, text: str) -> None:
        if self._owner is not None:
            tenant = await self._find_tenant(self._owner)
            order = read_order(text)
            kind, arguments, dedup = order.kind, order.arguments, f"sqs {message_id}"
        else:
            tenant = await self._find_tenant(claimed_tenant(text))
            signed = read_signed_order(self._signer.tenant_key(tenant), text, self._clock.now_us())
            kind, arguments, dedup = signed.kind, signed.arguments, f"signed {signed.id}"
        if kind not in self._kinds:
            raise JobRefused(reason="this queue may not ask for such work")
        tenant.check_open(self._clock.now_us())
        # Pinned since the queue was opened, or a queue that it shares with tenants that may be there.
        check_region(self._account.region, tenant.regions)
        await self._jobs.enqueue(tenant, kind, arguments, dedup=dedup)

    async def _hide(self, handle: str) -> None:
        """Keep a message hidden while it is worked on."""
        while True:
            await asyncio.sleep(self._visible_s / 3)
            await self._hide_for(handle, self._visible_s)

    async def _hide_for(self, handle: str, seconds: int) -> None:
        with contextlib.suppress(NagayaError, AwsRefusal):
            await self._call(
                "change_message_visibility", deadline_s=CALL_S, ReceiptHandle=handle, VisibilityTimeout=seconds
            )

    async def _call(self, operation: str, *, deadline_s: float, **request: Any) -> dict[str, Any]:
        client = await self._account.client("sqs")
        return await self._account.call(
            getattr(client, operation),
            deadline_s=deadline_s,
            unreachable=JobsUnreachable,
            QueueUrl=self._queue_url,
            **request,
        )


async def open_ingress(
    url: str,
    surroundings: Surroundings,
    jobs: Jobs,
    find_tenant: FindTenant,
    signer: JobSigner,
    *,
    owner: str | None,
    kinds: frozenset[str],
    visible_s: int | None = None,
    poll_s: int | None = None,
) -> SqsIngress:
    """Open ``sqs://REGION/ACCOUNT/NAME``; ``start`` begins to listen.

    A tenant's own queue (``owner``) is reached with the tenant's connection secret, where it has one, and must lie in
    its regions; ``surroundings`` are then the tenant's. Over a queue that several share, messages of tenants that are
    pinned elsewhere are refused. Raises ``InvalidValue`` for another form, an absent queue or
    one without a redrive policy, ``RegionRefused``, ``JobsUnreachable``, ``PermissionMissing``.
    """
    place, _ = url_parts(url, "sqs", known=frozenset())
    parts = place.split("/")
    if len(parts) != 3 or not all(parts) or not parts[1].isdigit():
        raise InvalidValue(param="queue", at="queue", detail="expected sqs://REGION/ACCOUNT/NAME")
    region, number, name = parts

    def grants(connection: AwsConnection, region: str) -> Sequence[Mapping[str, Any]]:
        actions = ("ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility", "GetQueueAttributes", "GetQueueUrl")
        queue = f"arn:aws:sqs:{region}:{number}:{name}"
        return ({"Effect": "Allow", "Action": [f"sqs:{action}" for action in actions], "Resource": queue},)

    account = await AwsAccount.open(surroundings, region=region, grants=grants)
    try:
        queue_url = await _checked_queue(account, number, name)
    except AwsRefusal as refused:
        await account.close()
        raise InvalidValue(param="queue", at="queue", detail="there is no such queue") from refused
    except BaseException:
        await account.close()
        raise
    return SqsIngress(
        account,
        queue_url,
        jobs,
        find_tenant,
        signer,
        surroundings.clock,
        owner=owner,
        kinds=kinds,
        visible_s=visible_s,
        poll_s=poll_s,
    )


async def _checked_queue(account: AwsAccount, number: str, name: str) -> str:
    client = await account.client("sqs")
    found = await account.call(
        client.get_queue_url,
        deadline_s=CALL_S,
        unreachable=JobsUnreachable,
        QueueName=name,
        QueueOwnerAWSAccountId=number,
    )
    queue_url: str = found["QueueUrl"]
    attributes = await account.call(
        client.get_queue_attributes,
        deadline_s=CALL_S,
        unreachable=JobsUnreachable,
        QueueUrl=queue_url,
        AttributeNames=["RedrivePolicy"],
    )
    if "RedrivePolicy" not in (attributes.get("Attributes") or {}):
        raise InvalidValue(param="queue", at="queue", detail="the queue needs a redrive policy to a dead-letter queue")
    return queue_url
