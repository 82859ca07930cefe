"""SQS queues with their dead letters on the tests' stand-in."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable

from parts.aws import REGION
from parts.ministack import Ministack

ACCOUNT = "000000000000"
_numbers = itertools.count(1)


class Queues:
    """A queue and its dead letters on the stand-in."""

    def __init__(self, ministack: Ministack) -> None:
        self._ministack = ministack
        self.name = f"jobs{next(_numbers)}"
        self.dead_url = self.call("CreateQueue", QueueName=f"{self.name}-dead")["QueueUrl"]
        policy = {"deadLetterTargetArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{self.name}-dead", "maxReceiveCount": 2}
        attributes = {"RedrivePolicy": json.dumps(policy)}
        self.queue_url = self.call("CreateQueue", QueueName=self.name, Attributes=attributes)["QueueUrl"]

    @property
    def url(self) -> str:
        return f"sqs://{REGION}/{ACCOUNT}/{self.name}"

    def call(self, operation: str, **body):
        return self._ministack.call("AmazonSQS", operation, **body)

    def send(self, body: object) -> str:
        text = body if isinstance(body, str) else json.dumps(body)
        return self.call("SendMessage", QueueUrl=self.queue_url, MessageBody=text)["MessageId"]

    def left(self, url: str | None = None) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.call("GetQueueAttributes", QueueUrl=url or self.queue_url, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)

    async def until(self, true: Callable[[], object], deadline_s: float = 30.0) -> None:
        async with asyncio.timeout(deadline_s):
            while not await asyncio.to_thread(true):
                await asyncio.sleep(0.05)
