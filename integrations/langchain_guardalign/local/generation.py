"""Answers of a local chat model to one call, whole or in chunks; the verdicts on the chat's images are dispatched.

A model is a `ChatGuardAlign`; arguments are those of the core's ``chat``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from guardalign_guardrails import UnsafeContentError
from langchain_guardalign.errors.violations import not_retried
from langchain_guardalign.events import AsyncLLMRun, LLMRun, adispatch, config_within, dispatch
from langchain_guardalign.local.batches import aanswer, answer
from langchain_guardalign.local.calls import check_tools
from langchain_guardalign.local.messages import chat_of, chunk_of, message_of


def generate(model: Any, messages: Sequence[BaseMessage], arguments: dict[str, Any], run_manager: LLMRun) -> ChatResult:
    """The whole answer."""
    config, lvlm = config_within(run_manager), model.lvlm
    check_tools(arguments["tools"], lvlm)
    try:
        given, place = answer(model, lvlm, chat_of(messages), arguments)
    except UnsafeContentError as error:
        dispatch([error.verdict], config)
        raise not_retried(error.verdict) from None
    dispatch(given.verdicts, config)
    return ChatResult(generations=[ChatGeneration(message=message_of(given, lvlm, place))])


async def agenerate(
    model: Any, messages: Sequence[BaseMessage], arguments: dict[str, Any], run_manager: AsyncLLMRun
) -> ChatResult:
    """`generate` without blocking the event loop."""
    config, lvlm = config_within(run_manager), await model.alvlm()
    check_tools(arguments["tools"], lvlm)
    try:
        given, place = await aanswer(model, lvlm, chat_of(messages), arguments)
    except UnsafeContentError as error:
        await adispatch([error.verdict], config)
        raise not_retried(error.verdict) from None
    await adispatch(given.verdicts, config)
    return ChatResult(generations=[ChatGeneration(message=message_of(given, lvlm, place))])


def stream(
    model: Any, messages: Sequence[BaseMessage], arguments: dict[str, Any], run_manager: LLMRun
) -> Iterator[ChatGenerationChunk]:
    """The answer in chunks."""
    config, lvlm = config_within(run_manager), model.lvlm
    check_tools(arguments["tools"], lvlm)
    try:
        with closing(lvlm.stream(chat_of(messages), **arguments)) as parts:
            for part in parts:
                dispatch(part.verdicts, config)
                if (chunk := chunk_of(part, lvlm)) is None:
                    continue
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
    except UnsafeContentError as error:
        dispatch([error.verdict], config)
        raise not_retried(error.verdict) from None


async def astream(
    model: Any, messages: Sequence[BaseMessage], arguments: dict[str, Any], run_manager: AsyncLLMRun
) -> AsyncIterator[ChatGenerationChunk]:
    """`stream` without blocking the event loop."""
    config, lvlm = config_within(run_manager), await model.alvlm()
    check_tools(arguments["tools"], lvlm)
    try:
        async with aclosing(lvlm.astream(chat_of(messages), **arguments)) as parts:
            async for part in parts:
                await adispatch(part.verdicts, config)
                if (chunk := chunk_of(part, lvlm)) is None:
                    continue
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
    except UnsafeContentError as error:
        await adispatch([error.verdict], config)
        raise not_retried(error.verdict) from None
