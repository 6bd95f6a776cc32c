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

from langchain_guardalign.messages import like
from langchain_guardalign.screening import ModelInput

Result = TypeVar("Result")
_Rewrite: TypeAlias = Callable[[Any], Any]
"""From a message or a list of messages to what takes its place."""

MESSAGES_KEY: Final = "messages"
"""Where an agent's state has its messages."""


def chats_of(result: Any) -> list[list[Any]]:
    """The messages in a tool's result, read or not: a list for each place that may hold some."""
    chats: list[list[Any]] = []

    def keep(value: Any) -> Any:
        chats.append(value if isinstance(value, list) else [value])
        return value

    _rewritten(result, keep)
    return chats


def with_chats(result: Result, screened: Sequence[ModelInput]) -> Result:
    """The result with sanitised messages in place of its own; itself if none differs.

    Args:
        result: What a tool returned.
        screened: Its `chats_of` after the check.
    """
    rest = iter(screened)

    def replaced(value: Any) -> Any:
        chat = next(rest)
        if chat.error is not None:
            return value
        new = like(chat.value, chat.read, chat.messages)
        if isinstance(value, list):
            return new
        return value if new is chat.value else new[0]

    return cast("Result", _rewritten(result, replaced))


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
