"""The internal form of a chat, to which every adapter converts its framework's messages.

Content stays plain data in its own dialect; `admission` checks and decodes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from guardalign_guardrails.content.chat import Role
from guardalign_guardrails.errors import PromptError

_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


@dataclass(frozen=True)
class ToolCall:
    """A model's request to run a tool.

    Attributes:
        name: Of the tool.
        arguments: By parameter name.
        id: Identifier that the tool's result refers to; may be empty.
    """

    name: str
    arguments: Mapping[str, Any] = field(repr=False)
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One message of a chat.

    Attributes:
        role: Role of the author.
        content: Text, or a list of blocks in any dialect that `guardalign_guardrails.content` reads.
        tool_calls: Tool calls of an assistant.
        tool_call_id: The call that a tool's result answers; None for other messages.
        name: Name of the tool, or of the author; None if it has none.
    """

    role: Role
    content: Any = field(repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


ChatInput: TypeAlias = str | Sequence[Message | Mapping[str, Any]]
"""A user's text, or messages: `Message` objects or mappings as OpenAI and Hugging Face write them."""


def messages_of(chat: ChatInput) -> list[Message]:
    """The messages of a chat.

    Raises:
        PromptError: There is none, or one cannot be read.
    """
    if isinstance(chat, str):
        return [Message("user", chat)]
    messages = [entry if isinstance(entry, Message) else _read(entry) for entry in chat]
    if not messages:
        raise PromptError("The chat is empty; give at least one message.")
    return messages


def _read(entry: Mapping[str, Any]) -> Message:
    if not isinstance(entry, Mapping):
        raise PromptError(f"A chat is made of messages or mappings, not {type(entry).__name__}.")
    role = _ROLES.get(str(entry.get("role")))
    if role is None:
        raise PromptError(f"A message needs a role, one of {', '.join(_ROLES)}.")
    content = entry.get("content")
    return Message(
        role,
        "" if content is None else content,
        tuple(_call(call) for call in entry.get("tool_calls") or ()),
        entry.get("tool_call_id"),
        entry.get("name"),
    )


def _call(call: Mapping[str, Any]) -> ToolCall:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            arguments = None
    if not isinstance(arguments, Mapping) or not isinstance(function.get("name"), str):
        raise PromptError("A tool call needs a name and arguments that are a JSON object.") from None
    return ToolCall(function["name"], arguments, str(call.get("id") or ""))
