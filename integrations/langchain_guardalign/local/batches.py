"""Several calls of a local chat model as one generation, each with a run of its own.

LangChain runs the inputs of a batch one call each, at the same time, so that each has its callbacks, cache and config.
Here those calls wait for each other just before they generate: the last one to come, or to drop out, generates for all.
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

from guardalign_guardrails.decoding.chat.answer import Answer
from guardalign_guardrails.decoding.chat.messages import Message
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.errors import GuardAlignError
from langchain_guardalign.events import Configs

Result: TypeAlias = tuple[Answer, int]
"""An answer, and its place among those of its generation."""


@dataclass(frozen=True)
class PendingCall:
    """A call that waits for the others of its batch.

    Attributes:
        chat: Its chat.
        arguments: Those of the core's ``chat``.
        result: To be set.
    """

    chat: list[Message] = field(repr=False)
    arguments: dict[str, Any] = field(repr=False)
    result: Future[Result] = field(default_factory=Future, repr=False)


class CallGroup:
    """The calls of one batch; they have equal arguments, since a batch has one set of them.

    Args:
        owner: The chat model whose batch it is; a callback may call another one meanwhile.
        size: How many calls there are.
    """

    def __init__(self, owner: object, size: int) -> None:
        self.owner = owner
        self._expected = set(range(size))
        self._waiting: dict[int, PendingCall] = {}
        self._lock = threading.Lock()

    def add(self, place: int, pending: PendingCall | None) -> list[PendingCall] | None:
        """Count a call.

        Args:
            place: Its place in the batch.
            pending: The call; None if it needs no generation: its answer came from a cache, it streams, or it failed.

        Returns:
            All that wait, in the order of the batch, if it was the last one expected: the caller generates for them.
            An empty list if others are expected; None if it was counted before, as one that generates again.
        """
        with self._lock:
            if place not in self._expected:
                return None
            self._expected.remove(place)
            if pending is not None:
                self._waiting[place] = pending
            waiting = [self._waiting[place] for place in sorted(self._waiting)]
            return [] if self._expected else [each for each in waiting if not each.result.cancelled()]


_SLOT: Final[ContextVar[tuple[CallGroup, int] | None]] = ContextVar("guardalign_batch_slot", default=None)


def answer(owner: object, lvlm: CalibratedLVLM, chat: list[Message], arguments: dict[str, Any]) -> Result:
    """The answer to a chat model's call, generated together with those of the batch that the call is part of."""
    pending = PendingCall(chat, arguments)
    group = _joined(owner, pending)
    if group is None:
        return lvlm.chat(chat, **arguments), 0
    _generate(lvlm, group)
    return pending.result.result()


async def aanswer(owner: object, lvlm: CalibratedLVLM, chat: list[Message], arguments: dict[str, Any]) -> Result:
    """`answer` without blocking the event loop."""
    pending = PendingCall(chat, arguments)
    group = _joined(owner, pending)
    if group is None:
        return await lvlm.achat(chat, **arguments), 0
    await _agenerate(lvlm, group)
    return await asyncio.wrap_future(pending.result)


def run_batch(
    model: Any,
    inputs: Sequence[LanguageModelInput],
    config: Configs,
    kwargs: dict[str, Any],
    *,
    return_exceptions: bool,
) -> list[Any]:
    """Answer inputs, ``batch_size`` or ``max_concurrency`` of them by one generation; each is a run of its own.

    Args:
        model: The chat model, a `ChatGuardAlign`.
        inputs: Model inputs.
        config: One for all, or one each.
        kwargs: Arguments of each call.
        return_exceptions: Whether errors are results.
    """

    def one(group: CallGroup, place: int, value: LanguageModelInput, own: RunnableConfig) -> Any:
        try:
            with _slot(group, place):
                return model.invoke(value, own, **kwargs)
        except Exception as error:
            if not return_exceptions:
                raise
            return error
        finally:
            if waiting := group.add(place, None):
                # The calls that wait get its errors; this one has its answer.
                with suppress(Exception):
                    _generate(model.lvlm, waiting)

    outputs: list[Any] = []
    for part in _parts(model, inputs, config):
        with ContextThreadPoolExecutor(max_workers=len(part)) as executor:
            outputs += executor.map(one, *zip(*part, strict=True))
    return outputs


async def arun_batch(
    model: Any,
    inputs: Sequence[LanguageModelInput],
    config: Configs,
    kwargs: dict[str, Any],
    *,
    return_exceptions: bool,
) -> list[Any]:
    """`run_batch` without blocking the event loop."""

    async def one(group: CallGroup, place: int, value: LanguageModelInput, own: RunnableConfig) -> Any:
        try:
            with _slot(group, place):
                return await model.ainvoke(value, own, **kwargs)
        except Exception as error:
            if not return_exceptions:
                raise
            return error
        finally:
            if waiting := group.add(place, None):
                with suppress(Exception):
                    await _agenerate(await model.alvlm(), waiting)

    outputs: list[Any] = []
    for part in _parts(model, inputs, config):
        outputs += await asyncio.gather(*[one(*each) for each in part])
    return outputs


def _generate(lvlm: CalibratedLVLM, group: Sequence[PendingCall]) -> None:
    """Generate for all calls that wait. If one of them cannot be answered, the others still are."""
    parts = [group] if group else []
    while parts:
        with _handed_out(parts.pop(), parts) as (part, answers):
            answers += lvlm.batch([pending.chat for pending in part], **part[0].arguments)


async def _agenerate(lvlm: CalibratedLVLM, group: Sequence[PendingCall]) -> None:
    """`_generate` without blocking the event loop."""
    parts = [group] if group else []
    while parts:
        with _handed_out(parts.pop(), parts) as (part, answers):
            answers += await lvlm.abatch([pending.chat for pending in part], **part[0].arguments)


@contextmanager
def _handed_out(
    part: Sequence[PendingCall], parts: list[Sequence[PendingCall]]
) -> Iterator[tuple[Sequence[PendingCall], list[Answer]]]:
    """Hand out the answers that are made within. The halves of a part that fails go back to the others: one may not."""
    answers: list[Answer] = []
    try:
        yield part, answers
    except BaseException as error:
        if isinstance(error, GuardAlignError) and len(part) > 1:
            middle = len(part) // 2
            parts += [part[middle:], part[:middle]]
            return
        for pending in part:
            if pending.result.set_running_or_notify_cancel():
                pending.result.set_exception(error)
        if not isinstance(error, GuardAlignError):
            raise
    else:
        places: dict[int, int] = {}
        for pending, one in zip(part, answers, strict=True):
            # Those of one generation share its report.
            place = places.get(id(one.calibration), 0)
            places[id(one.calibration)] = place + 1
            if pending.result.set_running_or_notify_cancel():
                pending.result.set_result((one, place))


@contextmanager
def _slot(group: CallGroup, place: int) -> Iterator[None]:
    """Take the calls of this thread or task for the one at a place of the batch."""
    token = _SLOT.set((group, place))
    try:
        yield
    finally:
        _SLOT.reset(token)


def _joined(owner: object, pending: PendingCall) -> list[PendingCall] | None:
    """What to generate for; None for a call that is part of no batch."""
    slot = _SLOT.get()
    return None if slot is None or slot[0].owner is not owner else slot[0].add(slot[1], pending)


def _parts(
    model: Any, inputs: Sequence[LanguageModelInput], config: Configs
) -> Iterator[list[tuple[CallGroup, int, LanguageModelInput, RunnableConfig]]]:
    """Inputs of one generation each, with group, place and config."""
    configs = get_config_list(config, len(inputs)) if inputs else []
    size = min(model.batch_size, configs[0].get("max_concurrency") or model.batch_size) if configs else 1
    for first in range(0, len(inputs), size):
        own = inputs[first : first + size]
        group = CallGroup(model, len(own))
        yield [(group, place, value, configs[first + place]) for place, value in enumerate(own)]
