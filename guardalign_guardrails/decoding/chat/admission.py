"""What of a chat may reach the model: the guard in front, then every image opened here and nowhere else.

A processor is only ever given decoded images: transformers would follow URLs and open local paths that it finds in a
message. The pixels are those that the guard scored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from PIL import Image

from guardalign_guardrails.content.chat import ChatDecision, OnViolation, Role, decide_chat, sources
from guardalign_guardrails.content.payload import Remote
from guardalign_guardrails.content.screen import Screened, Turn, ascreen, screen
from guardalign_guardrails.content.walk import MediaBlock, Path, find
from guardalign_guardrails.decoding.chat.messages import Message, ToolCall
from guardalign_guardrails.errors import ImageDecodeError
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.images import ImageLimits, decode
from guardalign_guardrails.verdict import Verdict

Part: TypeAlias = str | Image.Image

# What a model thought or asked for in earlier turns stands elsewhere in a message, or is not for it to read again.
_SILENT_KINDS: Final = frozenset(
    {"thinking", "redacted_thinking", "reasoning", "reasoning_content", "tool_use", "tool_call", "function_call"}
)

_CONTENT_KEYS: Final = ("content", "value", "output")


@dataclass(frozen=True)
class AdmittedMessage:
    """A message as a model may see it.

    Attributes:
        role: Who says it.
        parts: Words and opaque RGB images in reading order.
        tool_calls: What an assistant asked for.
        tool_call_id: What a tool's result answers.
        name: Name of the tool, or of who says it.
    """

    role: Role
    parts: tuple[Part, ...] = field(repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def images(self) -> list[Image.Image]:
        """Its images, in order."""
        return [part for part in self.parts if isinstance(part, Image.Image)]


@dataclass(frozen=True)
class Admission:
    """What became of a chat at the door.

    Attributes:
        messages: What the model is given; empty if it is not to be asked.
        verdicts: One for each place that stands for an image, in reading order.
        decision: Who answers and whether a prefix is due; None if there is no guard.
    """

    messages: tuple[AdmittedMessage, ...] = field(repr=False)
    verdicts: tuple[Verdict, ...] = ()
    decision: ChatDecision | None = None


def admit(
    guard: Guard | None, chats: Sequence[Sequence[Message]], on_violation: OnViolation, limits: ImageLimits
) -> list[Admission]:
    """Check chats, all images of all of them in one batch, and open what may pass.

    Args:
        guard: What checks; None to check nothing.
        chats: Messages.
        on_violation: What a blocked image of the current user turn means. Routed chats count as blocked.
        limits: What an image may cost to decode where there is no guard, which has its own.

    Raises:
        ImageDecodeError: An image cannot be opened although nothing forbids it.
        GuardAlignError: The guard cannot work.
    """
    if guard is None:
        return [Admission(_opened(chat, None, limits)) for chat in chats]
    screened = screen(guard, _turns(chats))
    return _admissions(guard, chats, screened, on_violation)


async def aadmit(
    guard: Guard | None, chats: Sequence[Sequence[Message]], on_violation: OnViolation, limits: ImageLimits
) -> list[Admission]:
    """`admit` without blocking the event loop on the guard."""
    if guard is None:
        return admit(None, chats, on_violation, limits)
    return _admissions(guard, chats, await ascreen(guard, _turns(chats)), on_violation)


def _turns(chats: Sequence[Sequence[Message]]) -> list[Turn]:
    return [
        Turn(message.content, source)
        for chat in chats
        for message, source in zip(chat, sources([message.role for message in chat]), strict=True)
    ]


def _admissions(
    guard: Guard, chats: Sequence[Sequence[Message]], screened: Sequence[Screened], on_violation: OnViolation
) -> list[Admission]:
    remaining = iter(screened)
    admissions = []
    for chat in chats:
        own = [next(remaining) for _ in chat]
        roles = [message.role for message in chat]
        decision = decide_chat(guard.policy, roles, [one.verdicts for one in own], on_violation=on_violation)
        verdicts = tuple(verdict for one in own for verdict in one.verdicts)
        is_asked = decision.handled_by == "model"
        messages = _opened(chat, [one.content for one in own], guard.limits) if is_asked else ()
        admissions.append(Admission(messages, verdicts, decision))
    return admissions


def _opened(
    chat: Sequence[Message], contents: Sequence[Any] | None, limits: ImageLimits
) -> tuple[AdmittedMessage, ...]:
    given = [message.content for message in chat] if contents is None else contents
    return tuple(
        AdmittedMessage(
            message.role, tuple(_parts_of(content, limits)), message.tool_calls, message.tool_call_id, message.name
        )
        for message, content in zip(chat, given, strict=True)
    )


def _parts_of(content: Any, limits: ImageLimits) -> Iterator[Part]:
    slots = {slot.path: slot for slot in find(content)}
    yield from _walk(content, (), slots, limits)


def _walk(value: Any, path: Path, slots: Mapping[Path, MediaBlock], limits: ImageLimits) -> Iterator[Part]:
    if path in slots:
        yield _image(slots[path], limits)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _walk(item, (*path, place), slots, limits)
    elif isinstance(value, Mapping):
        yield from _walk_block(value, path, slots, limits)
    elif value is not None:
        yield str(value)


def _walk_block(
    block: Mapping[Any, Any], path: Path, slots: Mapping[Path, MediaBlock], limits: ImageLimits
) -> Iterator[Part]:
    if str(block.get("type")) in _SILENT_KINDS:
        return
    if isinstance(block.get("text"), str):
        yield block["text"]
        return
    holders = {where[: len(path) + 1] for where in slots}
    inside = [key for key in block if key in _CONTENT_KEYS or (*path, key) in holders]
    for key in inside:
        yield from _walk(block[key], (*path, key), slots, limits)
    if not inside:
        # Rows of a tool's result, and the like.
        yield json.dumps(block, ensure_ascii=False, default=str)


def _image(slot: MediaBlock, limits: ImageLimits) -> Image.Image:
    payload = slot.reading.read(limits.max_bytes)
    if isinstance(payload, Remote):
        payload = "remote_reference"
    if isinstance(payload, str):
        raise ImageDecodeError(
            payload,
            f"An image of the chat cannot be opened here ({payload}); give its bytes, or a policy that fetches URLs.",
        )
    return decode(payload, limits).flattened
