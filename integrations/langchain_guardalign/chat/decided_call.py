"""The run of a guarded runnable: what outsiders see of a call, around the run of the runnable that was chosen.

Listeners, message histories and tracers read the input of a run. They have to find the caller's messages there, without
what the guard took out, and without the prefix: a message history takes as many messages off the front as it put there,
and would store the last of them again for each one that the guard adds.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar, cast
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackHandler,
    AsyncCallbackManagerForChainRun,
    BaseCallbackHandler,
    CallbackManagerForChainRun,
)
from langchain_core.outputs import LLMResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.runnables.config import (
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
    patch_config,
)

from langchain_guardalign.chat.delegation import Delegation

Run = TypeVar("Run", CallbackManagerForChainRun, AsyncCallbackManagerForChainRun)


class DecidedCall(Runnable[Any, Any]):
    """Runs what was chosen for one input, within a run of its own. It is called with what that run shows as its input.

    LangChain's own ``astream_events`` puts its argument into the first event; here it may.
    """

    def __init__(self, name: str, chosen: Delegation) -> None:
        self.name, self._chosen = name, chosen

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Invoke what was chosen."""
        chosen = self._chosen

        def run(_: Any, config: RunnableConfig) -> Any:
            return chosen.runnable().invoke(chosen.input, config, **chosen.arguments)

        return self._call_with_config(cast("Any", run), input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """`invoke` without blocking the event loop."""
        chosen = self._chosen

        async def run(_: Any, config: RunnableConfig) -> Any:
            return await chosen.runnable().ainvoke(chosen.input, config, **chosen.arguments)

        return await self._acall_with_config(cast("Any", run), input, config)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Stream what was chosen. A reader who stops early leaves an error, as in a chat model's own run."""
        chosen, chunks = self._chosen, []
        config = ensure_config(config)
        run = get_callback_manager_for_config(config).on_chain_start(None, input, **self._identity(config))
        try:
            for chunk in chosen.runnable().stream(chosen.input, _within(run, config), **chosen.arguments):
                yield chunk
                if run.handlers:
                    chunks.append(chunk)
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end(_sum(chunks))

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """`stream` without blocking the event loop."""
        chosen, chunks = self._chosen, []
        config = ensure_config(config)
        manager = get_async_callback_manager_for_config(config)
        run = await manager.on_chain_start(None, input, **self._identity(config))
        try:
            stream = chosen.runnable().astream(chosen.input, _within(run, config), **chosen.arguments)
            # Closed with this generator, so that a reader who stops early ends the request too.
            async with aclosing(cast("Any", stream)):
                async for chunk in stream:
                    yield chunk
                    if run.handlers:
                        chunks.append(chunk)
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        await run.on_chain_end(_sum(chunks))

    def typed_stream(self, config: RunnableConfig | None) -> Any:
        """The stream of the chosen chat model's ``stream_events(version="v3")``."""
        chosen, config = self._chosen, ensure_config(config)
        run = get_callback_manager_for_config(config).on_chain_start(None, chosen.shown, **self._identity(config))
        try:
            target: Any = chosen.runnable()
            within = _within(run, config, _Ending(run))
            return target.stream_events(chosen.input, within, version="v3", **chosen.arguments)
        except BaseException as error:
            run.on_chain_error(error)
            raise

    async def atyped_stream(self, config: RunnableConfig | None) -> Any:
        """`typed_stream` for async code."""
        chosen, config = self._chosen, ensure_config(config)
        manager = get_async_callback_manager_for_config(config)
        run = await manager.on_chain_start(None, chosen.shown, **self._identity(config))
        try:
            target: Any = chosen.runnable()
            within = _within(run, config, _AsyncEnding(run))
            return await target.astream_events(chosen.input, within, version="v3", **chosen.arguments)
        except BaseException as error:
            await run.on_chain_error(error)
            raise

    def _identity(self, config: RunnableConfig) -> dict[str, Any]:
        return {"name": config.get("run_name") or self.get_name(), "run_id": config.pop("run_id", None)}


class _Ending(BaseCallbackHandler):
    """Ends a run with the model's run within it: a typed stream is read after the call that made it."""

    ignore_chat_model = True

    def __init__(self, run: CallbackManagerForChainRun) -> None:
        self._run = run

    def on_llm_end(self, response: LLMResult, *, parent_run_id: UUID | None = None, **kwargs: Any) -> None:
        if parent_run_id == self._run.run_id:
            self._run.on_chain_end(_message_of(response))

    def on_llm_error(self, error: BaseException, *, parent_run_id: UUID | None = None, **kwargs: Any) -> None:
        if parent_run_id == self._run.run_id:
            self._run.on_chain_error(error)


class _AsyncEnding(AsyncCallbackHandler):
    """`_Ending` for async code."""

    ignore_chat_model = True

    def __init__(self, run: AsyncCallbackManagerForChainRun) -> None:
        self._run = run

    async def on_llm_end(self, response: LLMResult, *, parent_run_id: UUID | None = None, **kwargs: Any) -> None:
        if parent_run_id == self._run.run_id:
            await self._run.on_chain_end(_message_of(response))

    async def on_llm_error(self, error: BaseException, *, parent_run_id: UUID | None = None, **kwargs: Any) -> None:
        if parent_run_id == self._run.run_id:
            await self._run.on_chain_error(error)


def _within(run: Run, config: RunnableConfig, *handlers: BaseCallbackHandler) -> RunnableConfig:
    """The config of what runs within a run."""
    callbacks = run.get_child()
    for handler in handlers:
        callbacks.add_handler(handler, inherit=False)
    return patch_config(config, callbacks=callbacks)


def _sum(chunks: Sequence[Any]) -> Any:
    """All chunks as one output; the last one where they cannot be added."""
    try:
        return functools.reduce(operator.add, chunks) if chunks else None
    except TypeError:
        return chunks[-1]


def _message_of(response: LLMResult) -> Any:
    return cast("Any", response.generations[0][0]).message
