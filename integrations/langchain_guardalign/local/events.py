"""Who hears of the verdicts of a local model's call.

LangChain tells a model its run when it generates, but not when it streams; then the config of the call says who
listens. It is only known while the stream is opened: between two chunks, a context is the reader's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.runnables.config import get_async_callback_manager_for_config, get_callback_manager_for_config

from guardalign_guardrails import Verdict
from guardalign_guardrails.verdict import event_of
from langchain_guardalign.chat import inner_calls as inner
from langchain_guardalign.events import EVENT

_OPENED_WITH: Final[ContextVar[RunnableConfig | None]] = ContextVar("guardalign_opened_with", default=None)


@contextmanager
def opening(config: RunnableConfig | None) -> Iterator[None]:
    """Within it a stream is opened with this config."""
    token = _OPENED_WITH.set(config)
    try:
        yield
    finally:
        _OPENED_WITH.reset(token)


def listeners(run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None) -> RunnableConfig:
    """The config of an event of this run; of the stream that is being opened, if there is no run."""
    return ensure_config(_OPENED_WITH.get()) if run_manager is None else inner.config_within(run_manager)


def tell(verdicts: Sequence[Verdict], config: RunnableConfig) -> None:
    """Dispatch ``guardalign.verdict``, within the run that ``config`` belongs to if there is one."""
    if verdicts:
        manager = get_callback_manager_for_config(config)
        manager.on_custom_event(EVENT, event_of(verdicts), run_id=manager.parent_run_id)


async def atell(verdicts: Sequence[Verdict], config: RunnableConfig) -> None:
    """`tell` for async runs."""
    if verdicts:
        manager = get_async_callback_manager_for_config(config)
        await manager.on_custom_event(EVENT, event_of(verdicts), run_id=manager.parent_run_id)
