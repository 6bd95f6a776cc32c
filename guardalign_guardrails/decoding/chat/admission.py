"""Admits chats to a model: the guard checks every image first, then every image is decoded here and nowhere else.

A processor is only ever given decoded images: transformers would follow URLs and open local paths that it finds in a
message. The pixels are those that the guard scored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from PIL import Image

from guardalign_guardrails.content.chat import ChatDecision, OnViolation, Role
from guardalign_guardrails.content.dialect import Path
from guardalign_guardrails.content.payload import Remote
from guardalign_guardrails.content.rewrite import with_blocks
from guardalign_guardrails.content.screen import Turn
from guardalign_guardrails.content.screened_chat import ScreenedChat, ascreen_chats, screen_chats
from guardalign_guardrails.content.walk import MediaBlock
from guardalign_guardrails.decoding.chat.answer import Answer
from guardalign_guardrails.decoding.chat.messages import Message, ToolCall
from guardalign_guardrails.errors import ImageDecodeError, UnsafeContentError
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.guarding.result import CheckResult
from guardalign_guardrails.images import ImageLimits, decode
from guardalign_guardrails.verdict import Verdict

AdmittedPart: TypeAlias = str | Image.Image

# A model's thoughts and calls of earlier turns stand elsewhere in a message, or are not for it to read again.
_SILENT_KINDS: Final = frozenset(
    {"thinking", "redacted_thinking", "reasoning", "reasoning_content", "tool_use", "tool_call", "function_call"}
)

_CONTENT_KEYS: Final = ("content", "value", "output")
_CANNOT_OPEN: Final = "An image of the chat cannot be opened here ({}); give its bytes, or a policy that fetches URLs."


@dataclass(frozen=True)
class AdmittedMessage:
    """A message as a model may see it.

    Attributes:
        role: Role of the author.
        parts: Text and opaque RGB images in reading order.
        tool_calls: Tool calls of an assistant.
        tool_call_id: The call that a tool's result answers.
        name: Name of the tool, or of the author.
    """

    role: Role
    parts: tuple[AdmittedPart, ...] = field(repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def images(self) -> list[Image.Image]:
        """Its images, in order."""
        return [part for part in self.parts if isinstance(part, Image.Image)]


@dataclass(frozen=True)
class Admission:
    """A chat that was checked.

    Attributes:
        messages: The messages for the model; empty if it is not asked.
        verdicts: The verdicts of all images, in reading order.
        decision: Who answers and whether a prefix is due; None without a guard.
        refusal: The policy's refusal, which is the answer then; None if the model is asked.
    """

    messages: tuple[AdmittedMessage, ...] = field(repr=False)
    verdicts: tuple[Verdict, ...] = ()
    decision: ChatDecision | None = None
    refusal: Answer | None = None


def admit(
    guard: Guard | None, chats: Sequence[Sequence[Message]], on_violation: OnViolation, limits: ImageLimits
) -> list[Admission]:
    """Check chats, all images of all of them in one batch, and decode what may pass.

    Args:
        guard: Checks images; None to check nothing.
        chats: Messages.
        on_violation: What a blocked image of the current user turn means. Routed chats count as blocked.
        limits: What an image may cost to decode where there is no guard, which has its own.

    Raises:
        UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``.
        ImageDecodeError: An image that may pass cannot be decoded.
        GuardAlignError: The guard cannot work.
    """
    turns = _turns(chats)
    if guard is None:
        return [_unguarded(*pair, limits) for pair in zip(chats, turns, strict=True)]
    screened = screen_chats(guard, turns, on_violation=on_violation)
    return [_admission(guard, *pair) for pair in zip(chats, screened, strict=True)]


async def aadmit(
    guard: Guard | None, chats: Sequence[Sequence[Message]], on_violation: OnViolation, limits: ImageLimits
) -> list[Admission]:
    """`admit` without blocking the event loop on the guard."""
    if guard is None:
        return admit(None, chats, on_violation, limits)
    screened = await ascreen_chats(guard, _turns(chats), on_violation=on_violation)
    return [_admission(guard, *pair) for pair in zip(chats, screened, strict=True)]


def _turns(chats: Sequence[Sequence[Message]]) -> list[list[Turn]]:
    return [[Turn(message.content, role=message.role, keep_results=True) for message in chat] for chat in chats]


def _unguarded(chat: Sequence[Message], turns: Sequence[Turn], limits: ImageLimits) -> Admission:
    return Admission(_admitted(chat, turns, [_unchecked(turn, limits) for turn in turns]))


def _admission(guard: Guard, chat: Sequence[Message], screened: ScreenedChat) -> Admission:
    decision, verdicts = screened.decision, screened.verdicts
    if decision.handled_by == "model" or decision.violation is None:
        messages = _admitted(chat, [one.turn for one in screened.turns], [one.content for one in screened.turns])
        return Admission(messages, verdicts, decision)
    if decision.handled_by == "error":
        raise UnsafeContentError(decision.violation)
    refusal = Answer(guard.policy.refusal_for(decision.violation), "refusal", verdicts=verdicts)
    return Admission((), verdicts, decision, refusal)


@dataclass(frozen=True, eq=False)
class _Unchecked:
    """An image that no guard checks; decoded where a message is read."""

    block: MediaBlock
    limits: ImageLimits

    @property
    def pixels(self) -> Image.Image:
        payload = self.block.reading.read(self.limits.max_bytes)
        if isinstance(payload, Remote | str):
            reason = "remote_reference" if isinstance(payload, Remote) else payload
            raise ImageDecodeError(reason, _CANNOT_OPEN.format(reason))
        return decode(payload, self.limits).flattened


def _unchecked(turn: Turn, limits: ImageLimits) -> Any:
    return with_blocks(turn.content, {block.path: _Unchecked(block, limits) for block in turn.media})


def _admitted(chat: Sequence[Message], turns: Sequence[Turn], contents: Sequence[Any]) -> tuple[AdmittedMessage, ...]:
    return tuple(
        AdmittedMessage(
            message.role,
            tuple(_parts(content, (), _holders(turn))),
            message.tool_calls,
            message.tool_call_id,
            message.name,
        )
        for message, turn, content in zip(chat, turns, contents, strict=True)
    )


def _holders(turn: Turn) -> frozenset[Path]:
    """Paths to everything that is an image or has one in it."""
    return frozenset(block.path[:size] for block in turn.media for size in range(len(block.path) + 1))


def _parts(value: Any, path: Path, holders: frozenset[Path]) -> Iterator[AdmittedPart]:
    if isinstance(value, _Unchecked):
        yield value.pixels
    elif isinstance(value, CheckResult):
        yield _pixels(value)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _parts(item, (*path, place), holders)
    elif isinstance(value, Mapping):
        yield from _parts_of_block(value, path, holders)
    elif value is not None:
        yield str(value)


def _parts_of_block(block: Mapping[Any, Any], path: Path, holders: frozenset[Path]) -> Iterator[AdmittedPart]:
    if str(block.get("type")) in _SILENT_KINDS:
        return
    if isinstance(block.get("text"), str):
        yield block["text"]
        return
    inside = [key for key in block if key in _CONTENT_KEYS or (*path, key) in holders]
    if inside and "type" not in block and not block.keys() & set(_CONTENT_KEYS):
        # A tool's JSON, of which the model reads what is beside its images, too.
        beside = {key: item for key, item in block.items() if key not in inside}
        yield from [json.dumps(beside, ensure_ascii=False, default=str)] if beside else []
    for key in inside:
        yield from _parts(block[key], (*path, key), holders)
    if not inside:
        # Rows of a tool's result, and the like.
        yield json.dumps(block, ensure_ascii=False, default=str)


def _pixels(result: CheckResult) -> Image.Image:
    try:
        return result.pixels
    except ImageDecodeError as error:
        reason = error.reason
    raise ImageDecodeError(reason, _CANNOT_OPEN.format(reason))
