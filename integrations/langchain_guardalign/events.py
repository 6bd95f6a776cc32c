"""The custom event ``guardalign.verdict``: what a guard found in one input, for callbacks and streams.

Verdicts only; an event holds no pixels and no text of the chat. All components dispatch it through this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeAlias
from uuid import UUID, uuid4

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.runnables.config import (
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
    patch_config,
    set_config_context,
)
from langchain_core.runnables.schema import CustomStreamEvent, StreamEvent

from guardalign_guardrails import Verdict
from guardalign_guardrails.verdict import event_of
from langchain_guardalign.screening import ModelInput

EVENT: Final = "guardalign.verdict"

Configs: TypeAlias = RunnableConfig | list[RunnableConfig] | None
"""The config of a batch: one for all inputs, or one each."""

LLMRun: TypeAlias = CallbackManagerForLLMRun | None
AsyncLLMRun: TypeAlias = AsyncCallbackManagerForLLMRun | None
"""The run in which a model generates; None where it streams."""

# LangChain passes a model its run when it generates, but not when it streams; then the config of the call has
# the handlers. It is known only while the stream is opened: between two chunks, the context is the caller's.
_STREAM_CONFIG: Final[ContextVar[RunnableConfig | None]] = ContextVar("guardalign_stream_config", default=None)


def dispatch(verdicts: Sequence[Verdict], config: RunnableConfig | None = None) -> None:
    """Dispatch one event; nothing without verdicts.

    Args:
        verdicts: What was found in one input.
        config: Of the run that the event belongs to; None for the run of the calling code. Without a run the event
            belongs to none, which `dispatch_custom_event` does not allow.
    """
    if verdicts:
        manager = get_callback_manager_for_config(ensure_config(config))
        manager.on_custom_event(EVENT, event_of(verdicts), run_id=manager.parent_run_id)


async def adispatch(verdicts: Sequence[Verdict], config: RunnableConfig | None = None) -> StreamEvent | None:
    """`dispatch` for async runs.

    Returns:
        The event as `astream_events` shows it; None without verdicts.
    """
    if not verdicts:
        return None
    manager = get_async_callback_manager_for_config(ensure_config(config))
    run_id: UUID = manager.parent_run_id or uuid4()
    data = event_of(verdicts)
    await manager.on_custom_event(EVENT, data, run_id=run_id)
    return CustomStreamEvent(
        event="on_custom_event",
        name=EVENT,
        run_id=str(run_id),
        parent_ids=[],
        tags=list(manager.tags),
        metadata=dict(manager.metadata),
        data=data,
    )


def write_to_stream(verdicts: Sequence[Verdict], runtime: Any) -> None:
    """Write the event to the ``custom`` stream of a LangGraph runtime; nothing without verdicts.

    The writer of a runtime looks up in the context which graph it writes for. On Python 3.10, LangGraph gives async
    code no context (its issue 5927); but the runtime of a node names the graph, so the writer gets that name from here.
    """
    writer = getattr(runtime, "stream_writer", None)
    if not verdicts or writer is None:
        return
    event = {"type": EVENT, **event_of(verdicts)}
    node = getattr(runtime, "execution_info", None)
    if node is None:
        writer(event)
        return
    with set_config_context(patch_config(None, configurable={"checkpoint_ns": node.checkpoint_ns})) as context:
        context.run(writer, event)


def traced_input(read: ModelInput, config: RunnableConfig | None) -> Any:
    """An input as a run of this config may be traced; None where images are in it and no handler receives the run."""
    if read.shown or read.has_more:
        is_traced = get_callback_manager_for_config(ensure_config(config)).handlers
        return read.without_images() if is_traced else None
    return read.without_images()


def config_within(run_manager: LLMRun | AsyncLLMRun) -> RunnableConfig:
    """The config of something that happens within a model's run, or while a stream is opened without one."""
    if run_manager is None:
        return ensure_config(_STREAM_CONFIG.get())
    kind = AsyncCallbackManager if isinstance(run_manager, AsyncCallbackManagerForLLMRun) else CallbackManager
    return {"callbacks": kind(handlers=run_manager.handlers, parent_run_id=run_manager.run_id)}


@contextmanager
def stream_config(config: RunnableConfig | None) -> Iterator[None]:
    """Open a stream with this config: events go to its callbacks."""
    token = _STREAM_CONFIG.set(config)
    try:
        yield
    finally:
        _STREAM_CONFIG.reset(token)
