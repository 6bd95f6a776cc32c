"""Chats of LlamaIndex through the core's screening: all images of all messages in one batch, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage

from guardalign_guardrails import Guard, Verdict
from guardalign_guardrails.content.chat import sources
from guardalign_guardrails.content.screen import Screened, Turn, ascreen, screen
from llama_index_guardalign.chat.blocks import plain_of, restored
from llama_index_guardalign.chat.messages import IMAGES_KEY, role_of

# What is in them is a model's words, or names something.
_WORDS: Final = ("name", "session_id", "tool_call_id", "tool_calls")


@dataclass(frozen=True)
class ScreenedChat:
    """What became of a chat.

    Attributes:
        messages: One for each that came in; the very same object if nothing changed.
        by_message: The verdicts of each, in reading order; empty for a message without media.
    """

    messages: list[ChatMessage] = field(repr=False)
    by_message: list[tuple[Verdict, ...]]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts in reading order."""
        return tuple(verdict for own in self.by_message for verdict in own)


def screen_chat(guard: Guard, messages: Sequence[ChatMessage]) -> ScreenedChat:
    """Check a chat; nothing is added to it: the prefix is the caller's.

    An image that leads elsewhere (a path, a stream, several places at once) becomes the bytes that were checked.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile.
    """
    turns = _turns(guard, messages)
    return _chat(guard, messages, turns, screen(guard, turns))


async def ascreen_chat(guard: Guard, messages: Sequence[ChatMessage]) -> ScreenedChat:
    """`screen_chat` without blocking the event loop."""
    turns = await asyncio.to_thread(_turns, guard, messages)
    return _chat(guard, messages, turns, await ascreen(guard, turns))


def _turns(guard: Guard, messages: Sequence[ChatMessage]) -> list[Turn]:
    """For each message its blocks, and what else it carries."""
    turns = []
    for message, source in zip(messages, sources([role_of(message) for message in messages]), strict=True):
        turns.append(Turn(plain_of(message.blocks, guard.limits.max_bytes), source))
        turns.append(Turn(list(_rest(message).values()), source, is_loose=True))
    return turns


def _rest(message: ChatMessage) -> dict[str, Any]:
    """What an app or an LLM class put beside a message's blocks."""
    return {k: v for k, v in message.additional_kwargs.items() if k != IMAGES_KEY and k not in _WORDS}


def _chat(
    guard: Guard, messages: Sequence[ChatMessage], turns: Sequence[Turn], screened: Sequence[Screened]
) -> ScreenedChat:
    is_enforced = guard.policy.mode == "enforce"
    result = ScreenedChat([], [])
    pairs = zip(turns, screened, strict=True)
    for message in messages:
        (turn, blocks), (_, rest) = next(pairs), next(pairs)
        new = _screened(message, turn.content, blocks.content, rest.content, is_enforced=is_enforced)
        result.messages.append(new)
        result.by_message.append((*blocks.verdicts, *rest.verdicts))
    return result


def _screened(message: ChatMessage, before: Any, after: Any, rest: list[Any], *, is_enforced: bool) -> ChatMessage:
    """The message with other blocks and other values beside them; itself if all are the same."""
    update: dict[str, Any] = {}
    blocks = restored(message.blocks, before, after, is_pinned=is_enforced)
    if any(new is not old for new, old in zip(blocks, message.blocks, strict=True)):
        update["blocks"] = blocks
    changed = {k: new for (k, old), new in zip(_rest(message).items(), rest, strict=True) if new is not old}
    # LlamaIndex made blocks of these images when the message was made, and the blocks were checked.
    gone = {IMAGES_KEY} & message.additional_kwargs.keys() if is_enforced else set()
    if changed or gone:
        kept = {key: value for key, value in message.additional_kwargs.items() if key not in gone}
        update["additional_kwargs"] = {**kept, **changed}
    return message.model_copy(update=update) if update else message
