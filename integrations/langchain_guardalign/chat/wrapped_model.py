"""What a wrapper does with the chat model inside beside calling it: placement, counting, and model authors' methods.

The inner methods (``generate``, ``_generate``, ``_stream``, ...) are LangChain's contract with model authors; a wrapper
that is called by them has to pass the call on by them. A model need neither stream nor take a run manager, and a
binding of a model has none of them: that is run by its public methods.
"""

# ruff: noqa: SLF001  that contract's names begin with an underscore

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, cast
from uuid import uuid4

from langchain_core.callbacks import Callbacks
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult, RunInfo
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.utils import accepts_run_manager

from guardalign_guardrails.content.chat import Placement, PlacementSetting, placement_for
from guardalign_guardrails.content.payload import Remote
from guardalign_guardrails.content.redaction import with_text_at
from guardalign_guardrails.content.walk import find
from langchain_guardalign.chat.accepted_model import names_in
from langchain_guardalign.events import AsyncLLMRun, LLMRun, config_within

_ELSEWHERE: Final = "[image behind a URL]"
_OF_A_CONFIG: Final = ("tags", "metadata", "run_name")


def placement_of(
    setting: PlacementSetting,
    model: Any,
    arguments: Mapping[str, Any] | None = None,
    config: RunnableConfig | None = None,
) -> Placement:
    """Where a model wants the safety prefix: as set, or by the model's name.

    Of several models that may be asked, one that knows no system message decides: the others take text of the user too.
    """
    if setting != "auto":
        return setting
    wanted = [placement_for(name) for name in names_in(model, arguments, config)]
    return "user" if "user" in wanted else "system"


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


def generate_chats(
    model: Any, chats: list[list[BaseMessage]], stop: list[str] | None, callbacks: Callbacks, **kwargs: Any
) -> LLMResult:
    """``model.generate``."""
    if isinstance(model, BaseChatModel):
        return model.generate(chats, stop, callbacks, **kwargs)
    configs, arguments = _calls(len(chats), stop, callbacks, kwargs)
    return _result(model.batch(chats, configs, **arguments), configs)


async def agenerate_chats(
    model: Any, chats: list[list[BaseMessage]], stop: list[str] | None, callbacks: Callbacks, **kwargs: Any
) -> LLMResult:
    """``model.agenerate``."""
    if isinstance(model, BaseChatModel):
        return await model.agenerate(chats, stop, callbacks, **kwargs)
    configs, arguments = _calls(len(chats), stop, callbacks, kwargs)
    return _result(await model.abatch(chats, configs, **arguments), configs)


def generate(model: Any, messages: list[BaseMessage], run_manager: LLMRun, **kwargs: Any) -> ChatResult:
    """``model._generate``."""
    if isinstance(model, BaseChatModel):
        return model._generate(messages, **_managed(model._generate, run_manager, kwargs))
    answer = model.invoke(messages, config_within(run_manager), **_said(kwargs))
    return ChatResult(generations=[ChatGeneration(message=answer)])


async def agenerate(model: Any, messages: list[BaseMessage], run_manager: AsyncLLMRun, **kwargs: Any) -> ChatResult:
    """``model._agenerate``, which falls back on ``_generate`` in a thread."""
    if isinstance(model, BaseChatModel):
        return await model._agenerate(messages, **_managed(model._agenerate, run_manager, kwargs))
    answer = await model.ainvoke(messages, config_within(run_manager), **_said(kwargs))
    return ChatResult(generations=[ChatGeneration(message=answer)])


def stream(
    model: Any, messages: list[BaseMessage], run_manager: LLMRun, **kwargs: Any
) -> Iterator[ChatGenerationChunk]:
    """``model._stream``; the whole answer as one chunk if it has none."""
    if not isinstance(model, BaseChatModel):
        for chunk in model.stream(messages, config_within(run_manager), **_said(kwargs)):
            yield _as_chunk(ChatGeneration(message=chunk))
    elif type(model)._stream is BaseChatModel._stream:
        yield _as_chunk(generate(model, messages, run_manager, **kwargs).generations[0])
    else:
        yield from model._stream(messages, **_managed(model._stream, run_manager, kwargs))


async def astream(
    model: Any, messages: list[BaseMessage], run_manager: AsyncLLMRun, **kwargs: Any
) -> AsyncIterator[ChatGenerationChunk]:
    """``model._astream``, which falls back on ``_stream`` in a thread; the whole answer as one chunk without either."""
    if not isinstance(model, BaseChatModel):
        async with aclosing(model.astream(messages, config_within(run_manager), **_said(kwargs))) as answer:
            async for chunk in answer:
                yield _as_chunk(ChatGeneration(message=chunk))
    elif type(model)._stream is BaseChatModel._stream and type(model)._astream is BaseChatModel._astream:
        yield _as_chunk((await agenerate(model, messages, run_manager, **kwargs)).generations[0])
    else:
        chunks = model._astream(messages, **_managed(model._astream, run_manager, kwargs))
        async with aclosing(cast("Any", chunks)):
            async for each in chunks:
                yield each


def _managed(method: Callable[..., Any], run_manager: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "run_manager": run_manager} if accepts_run_manager(method) else kwargs


def _said(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a public method: no ``stop`` if there is none, which would replace one that is bound."""
    return {name: value for name, value in kwargs.items() if name != "stop" or value is not None}


def _calls(
    count: int, stop: list[str] | None, callbacks: Callbacks, kwargs: dict[str, Any]
) -> tuple[list[RunnableConfig], dict[str, Any]]:
    """A config for each call of a batch and what all are given, from what ``generate`` is given."""
    arguments = _said({"stop": stop, **kwargs})
    run_id = arguments.pop("run_id", None)
    shared = {name: arguments.pop(name) for name in _OF_A_CONFIG if name in arguments}
    ids = [run_id or uuid4(), *(uuid4() for _ in range(count - 1))]
    configs = [cast("RunnableConfig", {**shared, "callbacks": callbacks, "run_id": own}) for own in ids]
    return configs, arguments


def _result(answers: Sequence[BaseMessage], configs: Sequence[RunnableConfig]) -> LLMResult:
    runs = [RunInfo(run_id=cast("Any", config["run_id"])) for config in configs]
    return LLMResult(generations=[[ChatGeneration(message=answer)] for answer in answers], run=runs)


def _as_chunk(generation: ChatGeneration) -> ChatGenerationChunk:
    if isinstance(generation.message, AIMessageChunk):
        return ChatGenerationChunk(message=generation.message, generation_info=generation.generation_info)
    fields = generation.message.model_dump(exclude={"type"})
    return ChatGenerationChunk(message=AIMessageChunk(**fields), generation_info=generation.generation_info)
