"""LangChain messages with images, what is in them, and calls with their async twins; shared by the contracts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from PIL import Image

from guardalign_guardrails.testing.chats import QUESTION, ask, images_in, words_in

Call: TypeAlias = Callable[..., Any]
"""``call(runnable, "invoke", *args)`` calls the method, or its async twin; what streams comes back as a list."""


def question(*images: Image.Image, words: str = QUESTION) -> list[BaseMessage]:
    """A chat of one human message with words and images."""
    return convert_to_messages([ask(*images, words=words)])


def messages_of(value: Any) -> list[BaseMessage]:
    """The messages that a chat model would make of an input."""
    if isinstance(value, PromptValue):
        return value.to_messages()
    return [HumanMessage(value)] if isinstance(value, str) else convert_to_messages(value)


def images_of(messages: Sequence[BaseMessage]) -> list[Image.Image]:
    """All images of some messages, in reading order."""
    return [image for message in messages for image in images_in(message.content)]


def text_of(messages: Sequence[BaseMessage]) -> str:
    """All text of some messages."""
    return "\n".join(words_in(message.content) for message in messages)


def essence(output: Any) -> Any:
    """What of an output has to be the same from call to call; ids of generated messages are not."""
    if isinstance(output, BaseMessage):
        return output.type.removesuffix("MessageChunk").lower(), output.content
    if isinstance(output, PromptValue):
        return essence(output.to_messages())
    return [essence(item) for item in output] if isinstance(output, list | tuple) else output


def call_sync(runnable: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method."""
    result = getattr(runnable, method)(*args, **kwargs)
    return list(result) if isinstance(result, Iterator) else result


def call_async(runnable: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method's async twin on an event loop of its own; an iterator given to it comes as an async one."""

    async def run() -> Any:
        fed = [_as_async(each) if isinstance(each, Iterator) else each for each in args]
        result = getattr(runnable, f"a{method}")(*fed, **kwargs)
        return [item async for item in result] if hasattr(result, "__aiter__") else await result

    return asyncio.run(run())


def agents_know_their_run(call: Call) -> bool:
    """Whether code in agents called so has its run's context.

    On Python 3.10, LangGraph gives async code none: agents, guarded or not, stream no tokens, and an event that their
    middleware dispatches belongs to no run.
    """
    return call is call_sync or sys.version_info >= (3, 11)


async def _as_async(items: Iterator[Any]) -> Any:
    for item in items:
        yield item
