"""What is to become of a model input: which model may answer it, or why none, and what that model is given.

The core decides (`guardalign_guardrails.content.chat`); this brings LangChain's inputs to it and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage, HumanMessage

from guardalign_guardrails import Policy, UnsafeContentError, Verdict
from guardalign_guardrails.content.chat import OnViolation, Placement, decide_chat
from langchain_guardalign.chat.refusal import RefusingModel
from langchain_guardalign.messages import messages_of, role
from langchain_guardalign.rewrite import with_prefix
from langchain_guardalign.runnable import ImageGuard
from langchain_guardalign.screening import ScreenedChat, ascreen_chats, screen_chats

HandledBy = Literal["model", "route_to", "refusal"]


@dataclass(frozen=True)
class InputRules:
    """What a decision depends on beside the policy.

    Attributes:
        on_violation: What a blocked image of the current user turn means.
        can_route: Whether there is a model for inputs whose severest action is ``route``; they are blocked otherwise.
        placement: Where a model wants the prefix.
    """

    on_violation: OnViolation
    can_route: bool
    placement: Callable[[Literal["model", "route_to"]], Placement]


@dataclass(frozen=True)
class InputDecision:
    """The decision on one input.

    Attributes:
        handled_by: Who answers; None if the input is an error.
        input: What the handled_by is given; the very same object if no image was in it and no prefix was due.
        verdicts: All that was found, in reading order.
        error: Why nothing is to run, or the violation that is refused; None if a model answers.
    """

    handled_by: HandledBy | None
    input: LanguageModelInput = field(repr=False)
    verdicts: tuple[Verdict, ...] = ()
    error: Exception | None = None


def decide_inputs(guard: ImageGuard, inputs: Sequence[LanguageModelInput], rules: InputRules) -> list[InputDecision]:
    """Decide on inputs; the images of all of them are checked in one batch.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile.
    """
    read = [_read(value) for value in inputs]
    chats = screen_chats(guard.active_guard, _readable(read), artifacts=guard.artifacts)
    return _decide_all(guard, inputs, read, chats, rules)


async def adecide_inputs(
    guard: ImageGuard, inputs: Sequence[LanguageModelInput], rules: InputRules
) -> list[InputDecision]:
    """`decide_inputs` without blocking the event loop."""
    read = [_read(value) for value in inputs]
    chats = await ascreen_chats(guard.active_guard, _readable(read), artifacts=guard.artifacts)
    return _decide_all(guard, inputs, read, chats, rules)


def refusal_of(policy: Policy, decision: InputDecision) -> RefusingModel:
    """The policy's refusal of an input that is refused, with all that was found on record."""
    violation = decision.error.verdict if isinstance(decision.error, UnsafeContentError) else None
    text = policy.refusal if violation is None else policy.refusal_for(violation)
    return RefusingModel.for_verdicts(text, decision.verdicts)


def _read(value: LanguageModelInput) -> list[BaseMessage] | Exception:
    if isinstance(value, str):
        return [HumanMessage(value)]
    try:
        return messages_of(value)
    except (TypeError, ValueError) as error:
        return error


def _readable(read: Sequence[list[BaseMessage] | Exception]) -> list[list[BaseMessage]]:
    return [messages for messages in read if isinstance(messages, list)]


def _decide_all(
    guard: ImageGuard,
    inputs: Sequence[LanguageModelInput],
    read: Sequence[list[BaseMessage] | Exception],
    chats: Sequence[ScreenedChat],
    rules: InputRules,
) -> list[InputDecision]:
    policy, screened = guard.active_guard.policy, iter(chats)
    return [
        InputDecision(None, value, error=messages)
        if isinstance(messages, Exception)
        else _rule(policy, value, next(screened), rules)
        for value, messages in zip(inputs, read, strict=True)
    ]


def _rule(policy: Policy, value: LanguageModelInput, chat: ScreenedChat, rules: InputRules) -> InputDecision:
    roles = [role(message) for message in chat.messages]
    decided = decide_chat(policy, roles, chat.by_message, on_violation=rules.on_violation, can_route=rules.can_route)
    if decided.violation is not None and decided.handled_by in ("refusal", "error"):
        refusal: HandledBy | None = "refusal" if decided.handled_by == "refusal" else None
        return InputDecision(refusal, chat.messages, chat.verdicts, UnsafeContentError(decided.violation))
    handled_by: Literal["model", "route_to"] = "route_to" if decided.handled_by == "route" else "model"
    if decided.is_prefix_due:
        messages = with_prefix(chat.messages, policy.prefix, rules.placement(handled_by))
    elif chat.verdicts:
        # Not the input: a list that someone appends to meanwhile would bring in what nobody looked at.
        messages = chat.messages
    else:
        return InputDecision(handled_by, value)
    return InputDecision(handled_by, messages, chat.verdicts)
