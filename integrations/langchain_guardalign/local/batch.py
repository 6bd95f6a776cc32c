"""Several calls of a local chat model as one generation, each with a run of its own.

LangChain runs the inputs of a batch one call each, at the same time, so that each has its callbacks, cache and config.
Here those calls meet just before they generate: the last one to come, or to drop out, generates for all.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import RunnableConfig, get_config_list
from langchain_core.runnables.config import ContextThreadPoolExecutor
from pydantic import Field

from guardalign_guardrails.decoding.chat.answer import Answer
from guardalign_guardrails.decoding.chat.messages import Message
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.errors import GuardAlignError
from langchain_guardalign.local.call import Call
from langchain_guardalign.local.identity import LocalModel

Chat: TypeAlias = list[Message]
Result: TypeAlias = tuple[Answer, int]
"""An answer, and its place among those of its generation."""


@dataclass(frozen=True)
class Asked:
    """A call that waits for the others.

    Attributes:
        chat: Its chat.
        call: What it asks.
        result: To be set.
    """

    chat: Chat = field(repr=False)
    call: Call = field(repr=False)
    result: Future[Result] = field(default_factory=Future, repr=False)


class Gathering:
    """Calls that are to be one generation; they have equal arguments, since a batch has one set of them.

    Args:
        size: How many are expected.
    """

    def __init__(self, size: int) -> None:
        self._missing = size
        self._asked: dict[int, Asked] = {}
        self._counting = threading.Lock()

    def add(self, place: int, asked: Asked | None) -> list[Asked]:
        """Count one more.

        Args:
            place: Its place in the batch.
            asked: It; None if it dropped out: it was in a cache, streams, or failed.

        Returns:
            All that wait, in the order of the batch, if nobody else is expected: it is upon the caller to answer them.
            Else none.
        """
        with self._counting:
            self._missing -= 1
            if asked is not None:
                self._asked[place] = asked
            waiting = [self._asked[place] for place in sorted(self._asked)]
            return [] if self._missing else [one for one in waiting if not one.result.cancelled()]


class Member:
    """One call's part in a gathering.

    Args:
        gathering: Of the batch that the call belongs to.
        place: In the batch.
        owner: The chat model whose batch it is; others may be called meanwhile.
    """

    def __init__(self, gathering: Gathering, place: int, owner: object) -> None:
        self.owner = owner
        self._place = place
        self._gathering: Gathering | None = gathering

    def add(self, asked: Asked | None) -> list[Asked] | None:
        """`Gathering.add`, once; None from then on, for a call that generates again."""
        gathering, self._gathering = self._gathering, None
        return None if gathering is None else gathering.add(self._place, asked)


_MEMBER: Final[ContextVar[Member | None]] = ContextVar("guardalign_member", default=None)


@contextmanager
def membership(member: Member) -> Iterator[None]:
    """Within it the calls of this thread or task are the member's."""
    token = _MEMBER.set(member)
    try:
        yield
    finally:
        _MEMBER.reset(token)


def answer(owner: object, lvlm: CalibratedLVLM, chat: Chat, call: Call) -> Result:
    """The answer to a chat model's call, generated together with those of the batch that the call is part of."""
    asked = Asked(chat, call)
    group = _joined(owner, asked)
    if group is None:
        return lvlm.chat(chat, **call.arguments), 0
    answer_all(lvlm, group)
    return asked.result.result()


async def aanswer(owner: object, lvlm: CalibratedLVLM, chat: Chat, call: Call) -> Result:
    """`answer` without blocking the event loop."""
    asked = Asked(chat, call)
    group = _joined(owner, asked)
    if group is None:
        return await lvlm.achat(chat, **call.arguments), 0
    await aanswer_all(lvlm, group)
    return await asyncio.wrap_future(asked.result)


def answer_all(lvlm: CalibratedLVLM, group: Sequence[Asked]) -> None:
    """Generate for all who wait. If one of them cannot be answered, the others still are."""
    if not group:
        return
    try:
        answers = lvlm.batch([asked.chat for asked in group], **group[0].call.arguments)
    except GuardAlignError as error:
        for part in _halves(group, error):
            answer_all(lvlm, part)
    except BaseException as error:
        _fail(group, error)
        raise
    else:
        _hand_out(group, answers)


async def aanswer_all(lvlm: CalibratedLVLM, group: Sequence[Asked]) -> None:
    """`answer_all` without blocking the event loop."""
    if not group:
        return
    try:
        answers = await lvlm.abatch([asked.chat for asked in group], **group[0].call.arguments)
    except GuardAlignError as error:
        for part in _halves(group, error):
            await aanswer_all(lvlm, part)
    except BaseException as error:
        _fail(group, error)
        raise
    else:
        _hand_out(group, answers)


def _joined(owner: object, asked: Asked) -> list[Asked] | None:
    member = _MEMBER.get()
    return None if member is None or member.owner is not owner else member.add(asked)


def _halves(group: Sequence[Asked], error: GuardAlignError) -> list[Sequence[Asked]]:
    """The halves of a group that failed, one of which may not; none of a single one, which has its error."""
    if len(group) == 1:
        _fail(group, error)
        return []
    return [group[: len(group) // 2], group[len(group) // 2 :]]


def _fail(group: Sequence[Asked], error: BaseException) -> None:
    for asked in group:
        if asked.result.set_running_or_notify_cancel():
            asked.result.set_exception(error)


def _hand_out(group: Sequence[Asked], answers: Sequence[Answer]) -> None:
    rows: dict[int, int] = {}
    for asked, one in zip(group, answers, strict=True):
        # Those of one generation share its report.
        row = rows.get(id(one.calibration), 0)
        rows[id(one.calibration)] = row + 1
        if asked.result.set_running_or_notify_cancel():
            asked.result.set_result((one, row))


class Batching(LocalModel):
    """Overrides ``batch`` and ``abatch`` of a local chat model."""

    batch_size: int = Field(default=8, ge=1)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Answer inputs, ``batch_size`` or ``max_concurrency`` of them by one generation; each is a run of its own."""

        def one(member: Member, value: LanguageModelInput, own: RunnableConfig) -> Any:
            try:
                with membership(member):
                    return self.invoke(value, own, **kwargs)
            except Exception as error:
                if not return_exceptions:
                    raise
                return error
            finally:
                if group := member.add(None):
                    # Whoever waits is told of errors; this one has its answer.
                    with suppress(Exception):
                        answer_all(self.lvlm, group)

        outputs: list[Any] = []
        for part in self._parts(inputs, config):
            with ContextThreadPoolExecutor(max_workers=len(part)) as executor:
                outputs += executor.map(one, *zip(*part, strict=True))
        return outputs

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """`batch` without blocking the event loop."""

        async def one(member: Member, value: LanguageModelInput, own: RunnableConfig) -> Any:
            try:
                with membership(member):
                    return await self.ainvoke(value, own, **kwargs)
            except Exception as error:
                if not return_exceptions:
                    raise
                return error
            finally:
                if group := member.add(None):
                    with suppress(Exception):
                        await aanswer_all(await self.alvlm(), group)

        outputs: list[Any] = []
        for part in self._parts(inputs, config):
            outputs += await asyncio.gather(*[one(*each) for each in part])
        return outputs

    def _parts(
        self, inputs: Sequence[LanguageModelInput], config: RunnableConfig | list[RunnableConfig] | None
    ) -> Iterator[list[tuple[Member, LanguageModelInput, RunnableConfig]]]:
        """Inputs that are one generation, each with its part in it and its config."""
        configs = get_config_list(config, len(inputs)) if inputs else []
        size = min(self.batch_size, configs[0].get("max_concurrency") or self.batch_size) if configs else 1
        for first in range(0, len(inputs), size):
            own = inputs[first : first + size]
            gathering = Gathering(len(own))
            members = [Member(gathering, place, self) for place in range(len(own))]
            yield list(zip(members, own, configs[first : first + size], strict=True))
