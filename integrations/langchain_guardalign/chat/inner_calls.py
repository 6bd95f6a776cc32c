"""The methods that chat models implement, called on a wrapped model.

They are LangChain's contract with model authors, not with callers; a wrapper that is called by them has to pass the
call on by them. A model need neither stream nor take a run manager.
"""

# ruff: noqa: SLF001  that contract's names begin with an underscore

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables.utils import accepts_run_manager


def generate(
    model: BaseChatModel, messages: list[BaseMessage], run_manager: CallbackManagerForLLMRun | None, **kwargs: Any
) -> ChatResult:
    """``model._generate``."""
    return model._generate(messages, **_managed(model._generate, run_manager, kwargs))


async def agenerate(
    model: BaseChatModel, messages: list[BaseMessage], run_manager: AsyncCallbackManagerForLLMRun | None, **kwargs: Any
) -> ChatResult:
    """``model._agenerate``, which falls back on ``_generate`` in a thread."""
    return await model._agenerate(messages, **_managed(model._agenerate, run_manager, kwargs))


def stream(
    model: BaseChatModel, messages: list[BaseMessage], run_manager: CallbackManagerForLLMRun | None, **kwargs: Any
) -> Iterator[ChatGenerationChunk]:
    """``model._stream``; the whole answer as one chunk if it has none."""
    if type(model)._stream is BaseChatModel._stream:
        yield _as_chunk(generate(model, messages, run_manager, **kwargs).generations[0])
        return
    yield from model._stream(messages, **_managed(model._stream, run_manager, kwargs))


async def astream(
    model: BaseChatModel, messages: list[BaseMessage], run_manager: AsyncCallbackManagerForLLMRun | None, **kwargs: Any
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
