"""What a chat model's input is made of, and back: messages from inputs, their roles, inputs from messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.prompt_values import ChatPromptValue, PromptValue

from guardalign_guardrails.content.chat import Role
from guardalign_guardrails.content.media_text import media_of_text

_OF_TOOLS: Final = (ToolMessage, FunctionMessage)
_ROLES: Final[dict[str, Role]] = {
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "function": "tool",
    "tool": "tool",
}


def messages_of(value: LanguageModelInput) -> list[BaseMessage]:
    """The messages a chat model would make of an input; none for plain text that is no image.

    Raises:
        TypeError: The input is not of a type that chat models take.
        ValueError: An element cannot be read as a message.
    """
    if isinstance(value, str):
        return [] if media_of_text(value) is None else [HumanMessage(value)]
    if isinstance(value, PromptValue):
        return value.to_messages()
    if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"A guard takes a string, a prompt value or a list of messages, not {type(value).__name__}.")
    try:
        return convert_to_messages(value)
    except Exception as error:  # noqa: BLE001  whatever it is, its text quotes the message
        kind = type(error).__name__
    raise ValueError(f"The input cannot be read as chat messages ({kind}); pass messages or (role, content) pairs.")


def like(value: Any, before: Sequence[BaseMessage], after: Sequence[BaseMessage]) -> Any:
    """``after`` as what the input was; the input itself if no message changed.

    Args:
        value: The input.
        before: Its messages.
        after: Messages in their place, perhaps with new ones in front.
    """
    if len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True)):
        return value
    if isinstance(value, str):
        return text_like(value, after)
    if isinstance(value, ChatPromptValue):
        return value.model_copy(update={"messages": list(after)})
    if isinstance(value, PromptValue):
        return ChatPromptValue(messages=list(after))
    # What did not change stays as it was written, be it a tuple or a dict.
    added = len(after) - len(before)
    kept = [old if new is message else new for old, message, new in zip(value, before, after[added:], strict=True)]
    elements: list[Any] = [*after[:added], *kept]
    return tuple(elements) if isinstance(value, tuple) else elements


def text_like(text: str, messages: Sequence[BaseMessage]) -> str:
    """A text, or what became of it where it was read as a message because it is an image."""
    return str(messages[0].content) if messages else text


def role(message: BaseMessage) -> Role:
    """The role of a message. What is not known to be a system message is none: a policy may be milder with those."""
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, _OF_TOOLS):
        return "tool"
    if isinstance(message, ChatMessage):
        return _ROLES.get(message.role, "user")
    if isinstance(message, AIMessage):
        return "assistant"
    return "system" if isinstance(message, SystemMessage) else "user"
