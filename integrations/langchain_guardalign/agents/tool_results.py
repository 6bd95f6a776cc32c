"""The messages in what an agent's tool returns, and back.

A tool returns a message, a command that updates the state, or a list of these. Anything else in a command (where to go,
which graph, other keys of the state) is left alone. What cannot be read as messages is too: the state's reducer will
refuse it, and before a model sees a message it is screened again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias, TypeVar, cast

from langchain_core.messages import BaseMessage
from langgraph.types import Command

from langchain_guardalign.messages import like, messages_of

Result = TypeVar("Result")
_Rewrite: TypeAlias = Callable[[Any], Any]
"""From a message or a list of messages to what takes its place."""

MESSAGES_KEY: Final = "messages"
"""Where an agent's state has its messages."""


def chats_of(result: Any) -> list[list[BaseMessage]]:
    """The lists of messages in a tool's result, in order."""
    chats: list[list[BaseMessage]] = []

    def keep(value: Any) -> Any:
        if (chat := _read(value)) is not None:
            chats.append(chat)
        return value

    _rewritten(result, keep)
    return chats


def with_chats(
    result: Result, before: Sequence[Sequence[BaseMessage]], after: Sequence[Sequence[BaseMessage]]
) -> Result:
    """The result with other messages in place of its own; itself if none differs.

    Args:
        result: What a tool returned.
        before: Its `chats_of`.
        after: A list for each of them.
    """
    pairs = iter(zip(before, after, strict=True))

    def replaced(value: Any) -> Any:
        if _read(value) is None:
            return value
        old, new = next(pairs)
        if isinstance(value, list):
            return like(value, old, new)
        return value if old[0] is new[0] else new[0]

    return cast("Result", _rewritten(result, replaced))


def _read(value: Any) -> list[BaseMessage] | None:
    try:
        return messages_of(value if isinstance(value, list) else [value])
    except ValueError:
        return None


def _rewritten(result: Any, rewrite: _Rewrite) -> Any:
    if isinstance(result, BaseMessage):
        return rewrite(result)
    if isinstance(result, list):
        return _same(result, [_rewritten(item, rewrite) for item in result])
    if isinstance(result, Command):
        update = _updated(result.update, rewrite)
        return result if update is result.update else replace(result, update=update)
    return result


def _updated(update: Any, rewrite: _Rewrite) -> Any:
    if isinstance(update, dict):
        if MESSAGES_KEY not in update:
            return update
        old = update[MESSAGES_KEY]
        new = rewrite(old)
        return update if new is old else {**update, MESSAGES_KEY: new}
    if isinstance(update, list | tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in update):
        pairs = [_pair(pair, rewrite) for pair in update]
        return _same(update, pairs if isinstance(update, list) else tuple(pairs))
    return update


def _pair(pair: tuple[Any, Any], rewrite: _Rewrite) -> tuple[Any, Any]:
    key, old = pair
    new = rewrite(old) if key == MESSAGES_KEY else old
    return pair if new is old else (key, new)


def _same(old: Any, new: Any) -> Any:
    return old if all(a is b for a, b in zip(old, new, strict=True)) else new
