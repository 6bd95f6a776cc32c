"""LlamaIndex's chat messages as the core's: roles, tool calls and their results; and as traces may show them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ToolCallBlock
from pydantic import BaseModel

from guardalign_guardrails.content.chat import Placement, Role, prefixed
from guardalign_guardrails.content.redaction import OMITTED
from guardalign_guardrails.content.rewrite import with_blocks
from guardalign_guardrails.content.walk import find_loose
from guardalign_guardrails.errors import PromptError
from llama_index_guardalign.chat.blocks import plain_of, without_media

_ROLES: Final[Mapping[MessageRole, Role]] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}

IMAGES_KEY: Final = "images"
"""Where a message's ``additional_kwargs`` may hold image documents. LlamaIndex makes blocks of them, and keeps them."""


def role_of(message: ChatMessage) -> Role:
    """Who says a message."""
    return _ROLES.get(message.role, "user")


def chat_of(messages: Sequence[ChatMessage], max_bytes: int) -> list[dict[str, Any]]:
    """Messages as a local model takes them; local files are read, nothing is fetched yet.

    Args:
        messages: A chat.
        max_bytes: Most bytes of a file to read.

    Raises:
        PromptError: A tool call in it cannot be read.
    """
    chat = []
    names: dict[str, str] = {}
    for message in messages:
        calls = list(_calls(message))
        names.update({call["id"]: call["function"]["name"] for call in calls})
        call_id = message.additional_kwargs.get("tool_call_id")
        chat.append(
            {
                "role": role_of(message),
                "content": plain_of(message.blocks, max_bytes),
                "tool_calls": calls,
                "tool_call_id": call_id,
                "name": message.additional_kwargs.get("name") or names.get(str(call_id)),
            }
        )
    return chat


def without_images(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Messages as they may be traced: a short text in place of every image, file and recording."""
    return [_without_images(message) for message in messages]


def _without_images(message: ChatMessage) -> ChatMessage:
    blocks = [without_media(block, OMITTED) for block in message.blocks]
    more = without_loose_images({key: value for key, value in message.additional_kwargs.items() if key != IMAGES_KEY})
    is_same = all(new is old for new, old in zip(blocks, message.blocks, strict=True))
    if is_same and more == message.additional_kwargs:
        return message
    return message.model_copy(update={"blocks": blocks, "additional_kwargs": more})


def without_loose_images(values: dict[str, Any]) -> dict[str, Any]:
    """Values of an app's own making with a short text in place of every image in them."""
    images = find_loose(values)
    if any(not image.path for image in images):
        return {}
    result: dict[str, Any] = with_blocks(values, {image.path: OMITTED for image in images})
    return result


def _calls(message: ChatMessage) -> Iterator[dict[str, Any]]:
    """The tool calls of a message, in OpenAI's form: from its blocks, or from where older LLM classes put them."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if blocks:
        for block in blocks:
            yield _call(block.tool_call_id, block.tool_name, block.tool_kwargs)
        return
    for entry in message.additional_kwargs.get("tool_calls") or ():
        data = entry.model_dump() if isinstance(entry, BaseModel) else entry
        if not isinstance(data, Mapping):
            raise PromptError(f"A tool call is a mapping or a pydantic object, not a {type(entry).__name__}.")
        inner = data.get("function") or data
        arguments: Any = next((inner[key] for key in ("arguments", "input", "tool_kwargs") if key in inner), {})
        yield _call(data.get("id") or data.get("tool_id"), inner.get("name") or inner.get("tool_name"), arguments)


def _call(identity: Any, name: Any, arguments: Any) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)
    return {"id": str(identity or ""), "function": {"name": name, "arguments": text}}


def with_prefix(
    messages: Sequence[ChatMessage], prefix: str, placement: Placement, system_role: MessageRole
) -> list[ChatMessage]:
    """The messages with the safety prefix, once.

    Args:
        messages: A chat.
        prefix: The safety prefix; nothing is done if it is blank.
        placement: ``system`` for the head of the first system message, which is made if there is none; ``user`` for the
            head of the first user message, for models that know no system message. The first message of a role stays
            the same from turn to turn, as providers' prompt caches need it.
        system_role: What the model calls the role of a system message.
    """
    prefix, result = prefix.strip(), list(messages)
    if not prefix:
        return result
    first = next((i for i, message in enumerate(messages) if role_of(message) == placement), None)
    if first is None:
        role = system_role if placement == "system" else MessageRole.USER
        return [ChatMessage(role=role, content=prefix), *result]
    result[first] = _headed(result[first], prefix)
    return result


def _headed(message: ChatMessage, prefix: str) -> ChatMessage:
    """The message with a text at its head; itself if it is there."""
    first = message.blocks[0] if message.blocks else None
    if not isinstance(first, TextBlock):
        return message.model_copy(update={"blocks": [TextBlock(text=prefix), *message.blocks]})
    if (text := prefixed(first.text, prefix)) == first.text:
        return message
    return message.model_copy(update={"blocks": [TextBlock(text=text), *message.blocks[1:]]})
