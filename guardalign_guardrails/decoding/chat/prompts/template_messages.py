"""Admitted chats as the messages that a chat template is given: cleaned text, and the prefix in its place.

Text that the tokenizer would read as a control token is broken up here. What a template makes of the messages is seen
in `template`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from PIL import Image

from guardalign_guardrails.decoding.chat.admission import AdmittedMessage
from guardalign_guardrails.decoding.chat.messages import ToolCall
from guardalign_guardrails.decoding.config import SafetyPrefix

TextKind = Literal["prefix", "instruction", "answer", "other"]

FIRST_MARK: Final = 0x100000
LAST_MARK: Final = 0x10FFFD
"""The last plane of Unicode is for private use only: `template` marks text with it, and a chat cannot contain it."""

# JSON can contain halves of a surrogate pair, and no tokenizer takes them.
_UNREADABLE: Final = re.compile(f"[{chr(0xD800)}-{chr(0xDFFF)}{chr(FIRST_MARK)}-{chr(LAST_MARK)}]")
_GAP: Final = "\n\n"
_KINDS: Final[Mapping[str, TextKind]] = {"user": "instruction", "tool": "instruction", "assistant": "answer"}


@dataclass(frozen=True)
class TextPart:
    """A content part that is text.

    Attributes:
        text: The text.
        kind: Its role in attention calibration.
    """

    text: str = field(repr=False)
    kind: TextKind = "other"


TemplatePart: TypeAlias = TextPart | Image.Image


@dataclass(frozen=True)
class TemplateMessage:
    """A message in content parts."""

    role: str
    parts: tuple[TemplatePart, ...] = field(repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def has_images(self) -> bool:
        """Whether it has an image."""
        return any(isinstance(part, Image.Image) for part in self.parts)


def template_messages(
    messages: Sequence[AdmittedMessage], prefix: SafetyPrefix | None, template: Any
) -> list[TemplateMessage]:
    """The messages of a chat, with the prefix unless it is blank or stands at the start of the answer.

    Args:
        messages: The chat.
        prefix: Put where its placement says; None for none.
        template: A processor or tokenizer, for its control tokens.
    """
    controls = _pattern(control_tokens(template))
    plain = [_message(message, controls) for message in messages]
    is_missing = prefix is None or not prefix.text.strip() or prefix.placement == "response"
    return plain if prefix is None or is_missing else _with_prefix(plain, prefix)


def folded(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """The chat in user and assistant messages that alternate: users say what system and tools say."""
    result: list[TemplateMessage] = []
    ahead: tuple[TemplatePart, ...] = ()
    for message in messages:
        parts = message.parts
        if message.role == "system":
            ahead = (*ahead, *parts, TextPart(_GAP))
            continue
        if message.role == "tool":
            parts = (TextPart(f"Result of {message.name or 'the tool'}:\n"), *parts)
        if message.tool_calls:
            calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls]
            parts = (*parts, TextPart(json.dumps(calls, ensure_ascii=False)))
        role = "user" if message.role in ("user", "tool") else message.role
        if role == "user" and ahead:
            parts, ahead = (*ahead, *parts), ()
        if result and result[-1].role == role:
            result[-1] = replace(result[-1], parts=(*result[-1].parts, TextPart("\n"), *parts))
        else:
            result.append(TemplateMessage(role, parts))
    return [*result, TemplateMessage("user", ahead[:-1])] if ahead else result


def cleaned_tools(tools: Sequence[Mapping[str, Any]], template: Any) -> list[dict[str, Any]]:
    """Descriptions of tools without control tokens."""
    cleaned: list[dict[str, Any]] = _clean(list(tools), _pattern(control_tokens(template)))
    return cleaned


def control_tokens(template: Any) -> frozenset[str]:
    """The text of a processor's or tokenizer's control tokens."""
    tokenizer = getattr(template, "tokenizer", template)
    known = {str(token) for token in getattr(tokenizer, "all_special_tokens", ())}
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    known |= {str(token) for token in added if getattr(token, "special", False)}
    # Placeholders of images and videos need not be special to the tokenizer.
    own = {token for name, token in vars(template).items() if name.endswith("_token") and isinstance(token, str)}
    return frozenset(token for token in known | own if len(token) > 1)


def _pattern(controls: frozenset[str]) -> re.Pattern[str] | None:
    typed = sorted(controls, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, typed))) if typed else None


def _clean(value: Any, controls: re.Pattern[str] | None) -> Any:
    """A value without marks and control tokens, at any depth."""
    if isinstance(value, str):
        text = _UNREADABLE.sub("\ufffd", value)
        # An image token or an end of turn in a user's text would move every span.
        return text if controls is None else controls.sub(lambda found: found[0][:1] + " " + found[0][1:], text)
    if isinstance(value, Mapping):
        return {_clean(key, controls): _clean(item, controls) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, controls) for item in value]
    return value


def _message(message: AdmittedMessage, controls: re.Pattern[str] | None) -> TemplateMessage:
    kind = _KINDS.get(message.role, "other")
    parts = tuple(
        part if isinstance(part, Image.Image) else TextPart(_clean(part, controls), kind) for part in message.parts
    )
    calls = tuple(
        ToolCall(_clean(call.name, controls), _clean(call.arguments, controls), _clean(call.id, controls))
        for call in message.tool_calls
    )
    return TemplateMessage(
        message.role, parts, calls, _clean(message.tool_call_id, controls), _clean(message.name, controls)
    )


def _with_prefix(messages: Sequence[TemplateMessage], prefix: SafetyPrefix) -> list[TemplateMessage]:
    part = TextPart(prefix.text.strip(), "prefix")
    asked = next((i for i in reversed(range(len(messages))) if messages[i].role == "user"), None)
    result = list(messages)
    if prefix.placement == "user" and asked is not None:
        parts = result[asked].parts
        first = next((i for i, own in enumerate(parts) if isinstance(own, TextPart)), len(parts))
        gap = TextPart(_GAP) if first < len(parts) else TextPart("")
        result[asked] = replace(result[asked], parts=(*parts[:first], part, gap, *parts[first:]))
        return result
    if result[0].role != "system":
        return [TemplateMessage("system", (part,)), *result]
    result[0] = replace(result[0], parts=(part, TextPart(_GAP), *result[0].parts))
    return result
