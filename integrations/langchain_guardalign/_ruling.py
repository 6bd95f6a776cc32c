"""What is to become of a model input: which model may answer it, or why none, and what that model is given.

The verdicts of the current user turn decide who answers. Images of earlier turns, of tools, of models and of the app's
own system message are replaced by a notice if they are blocked, and the chat goes on: it never could otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from guardalign_guardrails import Policy, UnsafeContentError, Verdict
from guardalign_guardrails.decision import is_prefix_due
from langchain_guardalign._messages import messages_of
from langchain_guardalign._rewrite import Placement, with_prefix
from langchain_guardalign._runnable import ImageGuard
from langchain_guardalign._screening import ScreenedChat, ascreen_chats, offender, screen_chats

OnViolation = Literal["refuse", "notice", "raise"]
Answerer = Literal["model", "route_to", "refusal"]


@dataclass(frozen=True)
class Rules:
    """What a ruling depends on beside the policy.

    Attributes:
        on_violation: What a blocked image of the current user turn means.
        can_route: Whether there is a model for inputs whose severest action is ``route``; they are blocked otherwise.
        placement: Where a model wants the prefix.
    """

    on_violation: OnViolation
    can_route: bool
    placement: Callable[[Literal["model", "route_to"]], Placement]


@dataclass(frozen=True)
class Ruling:
    """The decision on one input.

    Attributes:
        answerer: Who answers; None if the input is an error.
        input: What the answerer is given; the very same object if no image was in it and no prefix was due.
        verdicts: All that was found, in reading order.
        error: Why nothing is to run, or the violation that is refused; None if a model answers.
    """

    answerer: Answerer | None
    input: LanguageModelInput = field(repr=False)
    verdicts: tuple[Verdict, ...] = ()
    error: Exception | None = None


def rulings(guard: ImageGuard, inputs: Sequence[LanguageModelInput], rules: Rules) -> list[Ruling]:
    """Decide on inputs; the images of all of them are checked in one batch.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile.
    """
    read = [_read(value) for value in inputs]
    chats = screen_chats(guard.active_guard, _readable(read), artifacts=guard.artifacts)
    return _rule_all(guard, inputs, read, chats, rules)


async def arulings(guard: ImageGuard, inputs: Sequence[LanguageModelInput], rules: Rules) -> list[Ruling]:
    """`rulings` without blocking the event loop."""
    read = [_read(value) for value in inputs]
    chats = await ascreen_chats(guard.active_guard, _readable(read), artifacts=guard.artifacts)
    return _rule_all(guard, inputs, read, chats, rules)


def _read(value: LanguageModelInput) -> list[BaseMessage] | Exception:
    if isinstance(value, str):
        return [HumanMessage(value)]
    try:
        return messages_of(value)
    except (TypeError, ValueError) as error:
        return error


def _readable(read: Sequence[list[BaseMessage] | Exception]) -> list[list[BaseMessage]]:
    return [messages for messages in read if isinstance(messages, list)]


def _rule_all(
    guard: ImageGuard,
    inputs: Sequence[LanguageModelInput],
    read: Sequence[list[BaseMessage] | Exception],
    chats: Sequence[ScreenedChat],
    rules: Rules,
) -> list[Ruling]:
    policy, screened = guard.active_guard.policy, iter(chats)
    return [
        Ruling(None, value, error=messages)
        if isinstance(messages, Exception)
        else _rule(policy, value, next(screened), rules)
        for value, messages in zip(inputs, read, strict=True)
    ]


def _rule(policy: Policy, value: LanguageModelInput, chat: ScreenedChat, rules: Rules) -> Ruling:
    found = offender(_of_this_turn(chat))
    answerer: Literal["model", "route_to"] = "model"
    if found is not None and found.action == "route" and rules.can_route:
        answerer = "route_to"
    elif found is not None and rules.on_violation != "notice":
        refusal: Answerer | None = "refusal" if rules.on_violation == "refuse" else None
        return Ruling(refusal, chat.messages, chat.verdicts, UnsafeContentError(found))
    if is_prefix_due(policy, [verdict.action for verdict in chat.verdicts]):
        messages = with_prefix(chat.messages, policy.prefix, rules.placement(answerer))
    elif chat.verdicts:
        # Not the input: a list that someone appends to meanwhile would bring in what nobody looked at.
        messages = chat.messages
    else:
        return Ruling(answerer, value)
    return Ruling(answerer, messages, chat.verdicts)


def _of_this_turn(chat: ScreenedChat) -> list[Verdict]:
    return [
        verdict
        for message, own in zip(chat.messages, chat.by_message, strict=True)
        if not isinstance(message, SystemMessage)
        for verdict in own
        if verdict.source == "user"
    ]
