"""What a wrapper does with the chat model inside beside calling it: name, placement, counting, and inner methods.

The inner methods (``_generate``, ``_stream``, ...) are LangChain's contract with model authors, not with callers; a
wrapper that is called by them has to pass the call on by them. A model need neither stream nor take a run manager.
"""

# ruff: noqa: SLF001  that contract's names begin with an underscore

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Final, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables.utils import accepts_run_manager

from guardalign_guardrails.content.chat import Placement, PlacementSetting, placement_for
from guardalign_guardrails.content.payload import Remote
from guardalign_guardrails.content.redaction import with_text_at
from guardalign_guardrails.content.walk import find
from langchain_guardalign.events import AsyncLLMRun, LLMRun

_ELSEWHERE: Final = "[image behind a URL]"


def name_of(model: BaseChatModel, arguments: dict[str, Any] | None = None) -> str | None:
    """The name a model would be called by with some arguments, as LangSmith gets it; None if it does not say."""
    return model._get_ls_params(**(arguments or {})).get("ls_model_name")


def placement_of(setting: PlacementSetting, model: BaseChatModel, arguments: dict[str, Any] | None = None) -> Placement:
    """Where a model wants the safety prefix: as set, or by the model's name."""
    return placement_for(None if setting != "auto" else name_of(model, arguments), setting)


def without_remote_images(messages: Sequence[BaseMessage], max_bytes: int) -> list[BaseMessage]:
    """The messages with a text for every image behind a URL: some token counters fetch those. Nothing is fetched here.

    Args:
        messages: A chat.
        max_bytes: Size above which an image is not decoded.
    """
    result = []
    for message in messages:
        paths = [block.path for block in find(message.content) if isinstance(block.reading.read(max_bytes), Remote)]
        update = {"content": with_text_at(message.content, paths, _ELSEWHERE)}
        result.append(message.model_copy(update=update) if paths else message)
    return result


def generate(model: BaseChatModel, messages: list[BaseMessage], run_manager: LLMRun, **kwargs: Any) -> ChatResult:
    """``model._generate``."""
    return model._generate(messages, **_managed(model._generate, run_manager, kwargs))


async def agenerate(
    model: BaseChatModel, messages: list[BaseMessage], run_manager: AsyncLLMRun, **kwargs: Any
) -> ChatResult:
    """``model._agenerate``, which falls back on ``_generate`` in a thread."""
    return await model._agenerate(messages, **_managed(model._agenerate, run_manager, kwargs))


def stream(
    model: BaseChatModel, messages: list[BaseMessage], run_manager: LLMRun, **kwargs: Any
) -> Iterator[ChatGenerationChunk]:
    """``model._stream``; the whole answer as one chunk if it has none."""
    if type(model)._stream is BaseChatModel._stream:
        yield _as_chunk(generate(model, messages, run_manager, **kwargs).generations[0])
        return
    yield from model._stream(messages, **_managed(model._stream, run_manager, kwargs))


async def astream(
    model: BaseChatModel, messages: list[BaseMessage], run_manager: AsyncLLMRun, **kwargs: Any
) -> AsyncIterator[ChatGenerationChunk]:
    """``model._astream``, which falls back on ``_stream`` in a thread; the whole answer as one chunk without either."""
    if type(model)._stream is BaseChatModel._stream and type(model)._astream is BaseChatModel._astream:
        yield _as_chunk((await agenerate(model, messages, run_manager, **kwargs)).generations[0])
        return
    chunks = model._astream(messages, **_managed(model._astream, run_manager, kwargs))
    async with aclosing(cast("Any", chunks)):
        async for chunk in chunks:
            yield chunk


def _managed(method: Callable[..., Any], run_manager: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "run_manager": run_manager} if accepts_run_manager(method) else kwargs


def _as_chunk(generation: ChatGeneration) -> ChatGenerationChunk:
    fields = generation.message.model_dump(exclude={"type"})
    return ChatGenerationChunk(message=AIMessageChunk(**fields), generation_info=generation.generation_info)
