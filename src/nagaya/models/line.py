"""A tenant's models in order: when the first is out, the same conversation goes on with the next."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final

import structlog

from nagaya.errors import (
    AnswerCut,
    CloudCredentialsRefused,
    CloudUnreachable,
    ModelRateLimited,
    ModelRefusedKey,
    ModelUnreachable,
    NagayaError,
    PermissionMissing,
)
from nagaya.kernel.breaker import Breaker
from nagaya.models.driver import ModelEvent, ModelRequest
from nagaya.models.model import Answer, Model, collected

OUTAGES: Final = (
    ModelUnreachable,
    ModelRateLimited,
    ModelRefusedKey,
    AnswerCut,
    CloudCredentialsRefused,
    CloudUnreachable,
    PermissionMissing,
)
"""What another model may well not suffer from. A refused request or a filtered answer is not among them: it would be
refused by the next one too, or, worse, would not."""

_log = structlog.get_logger(__name__)


class ModelInLine:
    """One model of the line, and how it has been doing."""

    __slots__ = ("breaker", "model")

    def __init__(self, model: Model, breaker: Breaker) -> None:
        self.model = model
        self.breaker = breaker


class ModelLine:
    """Models to be asked in order, the asked-for one first. Behaves as one; ``Finished.model`` says which answered.

    Another is asked only as long as nothing of an answer has been given out: half an answer of one model continued by
    another would be nobody's.
    """

    __slots__ = ("_line",)

    def __init__(self, line: Sequence[ModelInLine]) -> None:
        self._line = line

    @property
    def traces_content(self) -> bool:
        """Whether traces may hold what is said."""
        return self._line[0].model.traces_content

    @property
    def name(self) -> str:
        """The name of the model that is asked first."""
        return self._line[0].model.name

    @property
    def context_tokens(self) -> int | None:
        """The smallest window in the line, since any of its models may have to answer; None: none is known."""
        known = [place.model.context_tokens for place in self._line]
        return min((tokens for tokens in known if tokens is not None), default=None)

    @property
    def quotes_only(self) -> bool:
        """Whether the model that is asked first only quotes, and so cannot write anything of its own."""
        return self._line[0].model.quotes_only

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Answer as :meth:`nagaya.models.model.Model.stream` does, by the first model that is there.

        Raises the last outage where all are out, and at once what is no outage.
        """
        outage: NagayaError = ModelUnreachable()
        for place in self._line:
            if not place.breaker.admit():
                continue
            events = place.model.stream(request)
            try:
                try:
                    first = await anext(events)
                except OUTAGES as out:
                    place.breaker.failed()
                    outage = out
                    _log.warning("model is out", action="model.out", model=place.model.name, code=out.code)
                    continue
                except BaseException:
                    place.breaker.undecided()
                    raise
                place.breaker.succeeded()
                yield first
                async for event in events:
                    yield event
                return
            finally:
                await events.aclose()
        raise outage

    async def complete(self, request: ModelRequest) -> Answer:
        """Collect a whole answer. Raises what :meth:`stream` raises."""
        return await collected(self.stream(request))
