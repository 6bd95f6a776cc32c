"""Chats of LlamaIndex through the core's screening: all images of all messages in one batch, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.llm import LLM

from guardalign_guardrails import Action, Guard, Policy, Verdict
from guardalign_guardrails.content.chat import ChatDecision, OnViolation, PlacementSetting, placement_for
from guardalign_guardrails.content.screen import Screened, Turn
from guardalign_guardrails.content.screened_chat import ScreenedChat, ascreen_chats, screen_chats
from guardalign_guardrails.guarding.settings import GuardLike, GuardSettings
from llama_index_guardalign.chat.blocks import plain_of, restored
from llama_index_guardalign.chat.messages import IMAGES_KEY, role_of, with_prefix
from llama_index_guardalign.events import announce

# A model's text, or names.
_TEXT_KEYS: Final = ("name", "session_id", "tool_call_id", "tool_calls")


@dataclass(frozen=True)
class ScreenedMessages:
    """A chat that was screened.

    Attributes:
        messages: One for each that came in; the very same object if nothing changed.
        by_message: The verdicts of each, in reading order; empty for a message without media.
        decision: Who answers, and whether the safety prefix is due.
        policy: The policy that decided.
    """

    messages: list[ChatMessage] = field(repr=False)
    by_message: list[tuple[Verdict, ...]]
    decision: ChatDecision
    policy: Policy = field(repr=False)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts in reading order."""
        return tuple(verdict for own in self.by_message for verdict in own)

    @property
    def violation(self) -> Verdict | None:
        """The verdict that keeps the model from answering; None if it answers."""
        return self.decision.violation

    @property
    def refusal(self) -> str | None:
        """The policy's answer in the model's place; None if the model answers."""
        return None if self.violation is None else self.policy.refusal_for(self.violation)

    def messages_for(self, llm: LLM, placement: PlacementSetting = "auto") -> list[ChatMessage]:
        """The messages with the safety prefix, if it is due.

        Args:
            llm: The LLM that answers.
            placement: ``system``, ``user`` for models that know no system message, or ``auto`` to decide by the
                LLM's ``metadata.model_name``.
        """
        if not self.decision.is_prefix_due:
            return self.messages
        known = llm.metadata
        return with_prefix(
            self.messages, self.policy.prefix, placement_for(known.model_name, placement), known.system_role
        )


def screen_chat(
    guard: GuardLike,
    messages: Sequence[ChatMessage],
    *,
    on_violation: OnViolation = "refuse",
    can_route: bool = False,
    component: str = "screen_chat",
) -> ScreenedMessages:
    """Check a chat; nothing is added to it: for the prefix see `ScreenedMessages.messages_for`.

    An image that leads elsewhere (a path, a stream, several places at once) becomes the bytes that were checked.

    Args:
        guard: A ready guard, a policy, the path of one, or settings; None for the policy that ships with the package.
        messages: A chat.
        on_violation: What a blocked image of the current user turn means for the decision.
        can_route: Whether there is a model for chats whose severest action is ``route``; they are blocked otherwise.
        component: Its name in the `GuardVerdictEvent`.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile.
    """
    ready = GuardSettings.of(guard).guard
    (screened,) = screen_chats(ready, [_all_turns(ready, messages)], on_violation=on_violation, can_route=can_route)
    chat = _screened(ready, messages, screened)
    announce(component, chat.verdicts)
    return chat


async def ascreen_chat(
    guard: GuardLike,
    messages: Sequence[ChatMessage],
    *,
    on_violation: OnViolation = "refuse",
    can_route: bool = False,
    component: str = "screen_chat",
) -> ScreenedMessages:
    """`screen_chat` without blocking the event loop, on files either."""
    ready = GuardSettings.of(guard).guard
    turns = await asyncio.to_thread(_all_turns, ready, messages)
    # A call that waits for its turn must not hold one of the loop's threads.
    (screened,) = await ascreen_chats(ready, [turns], on_violation=on_violation, can_route=can_route)
    chat = await asyncio.to_thread(_screened, ready, messages, screened)
    announce(component, chat.verdicts)
    return chat


def without_blocked(
    guard: GuardLike, messages: Sequence[ChatMessage], actions: Container[Action], component: str
) -> list[ChatMessage]:
    """Messages of the user with a notice in place of what the policy blocks; the very same where it blocks nothing.

    Args:
        guard: See `screen_chat`.
        messages: One turn of the user.
        actions: Which actions count as blocked.
        component: Its name in the `GuardVerdictEvent`.
    """
    return _without_blocked(messages, screen_chat(guard, messages, component=component), actions)


async def awithout_blocked(
    guard: GuardLike, messages: Sequence[ChatMessage], actions: Container[Action], component: str
) -> list[ChatMessage]:
    """`without_blocked` without blocking the event loop."""
    return _without_blocked(messages, await ascreen_chat(guard, messages, component=component), actions)


def _without_blocked(
    messages: Sequence[ChatMessage], chat: ScreenedMessages, actions: Container[Action]
) -> list[ChatMessage]:
    return [
        new if any(verdict.action in actions for verdict in own) else old
        for old, new, own in zip(messages, chat.messages, chat.by_message, strict=True)
    ]


def _all_turns(guard: Guard, messages: Sequence[ChatMessage]) -> list[Turn]:
    return [turn for message in messages for turn in _turns(message, guard.limits.max_bytes)]


def _screened(guard: Guard, messages: Sequence[ChatMessage], chat: ScreenedChat) -> ScreenedMessages:
    pairs = list(zip(chat.turns[::2], chat.turns[1::2], strict=True))
    is_enforced = guard.policy.mode == "enforce"
    return ScreenedMessages(
        [_message(message, *own, is_enforced=is_enforced) for message, own in zip(messages, pairs, strict=True)],
        [(*blocks.verdicts, *rest.verdicts) for blocks, rest in pairs],
        chat.decision,
        guard.policy,
    )


def _turns(message: ChatMessage, max_bytes: int) -> tuple[Turn, Turn]:
    """A message's blocks, and what else it carries."""
    role = role_of(message)
    beside = list(_beside_blocks(message).values())
    return Turn(plain_of(message.blocks, max_bytes), role=role), Turn(beside, role=role, is_loose=True)


def _beside_blocks(message: ChatMessage) -> dict[str, Any]:
    """What an app or an LLM class put beside a message's blocks."""
    return {k: v for k, v in message.additional_kwargs.items() if k != IMAGES_KEY and k not in _TEXT_KEYS}


def _message(message: ChatMessage, inner: Screened, beside: Screened, *, is_enforced: bool) -> ChatMessage:
    """The message with other blocks and other values beside them; itself if all are the same."""
    update: dict[str, Any] = {}
    blocks = restored(message.blocks, inner.turn.content, inner.content, is_pinned=is_enforced)
    if any(new is not old for new, old in zip(blocks, message.blocks, strict=True)):
        update["blocks"] = blocks
    old_values = _beside_blocks(message).items()
    changed = {k: new for (k, old), new in zip(old_values, beside.content, strict=True) if new is not old}
    # LlamaIndex made blocks of these images when the message was made, and the blocks were checked.
    gone = {IMAGES_KEY} & message.additional_kwargs.keys() if is_enforced else set()
    if changed or gone:
        kept = {key: value for key, value in message.additional_kwargs.items() if key not in gone}
        update["additional_kwargs"] = {**kept, **changed}
    return message.model_copy(update=update) if update else message
