"""Tells whoever listens to an agent what its guard found: callbacks and event streams, and the ``custom`` stream.

Verdicts only; an event holds no pixels and no text of the chat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, get_callback_manager_for_config

from guardalign_guardrails import Verdict
from guardalign_guardrails.verdict import event_of
from langchain_guardalign.events import EVENT


def tell(verdicts: Sequence[Verdict], runtime: Any) -> None:
    """Dispatch the verdicts as one event and write them to the stream of ``runtime``; nothing if there are none."""
    if not verdicts:
        return
    _stream(verdicts, runtime)
    if (config := _running()) is not None:
        dispatch_custom_event(EVENT, event_of(verdicts), config=config)


async def atell(verdicts: Sequence[Verdict], runtime: Any) -> None:
    """`tell` for async runs."""
    if not verdicts:
        return
    _stream(verdicts, runtime)
    if (config := _running()) is not None:
        await adispatch_custom_event(EVENT, event_of(verdicts), config=config)


def _stream(verdicts: Sequence[Verdict], runtime: Any) -> None:
    if (write := getattr(runtime, "stream_writer", None)) is not None:
        write({"type": EVENT, **event_of(verdicts)})


def _running() -> RunnableConfig | None:
    """The config of the run this is part of; None outside of one, where events have nowhere to go.

    On Python 3.10 async code does not know what it runs in, and only the stream is told.
    """
    config = ensure_config()
    return config if get_callback_manager_for_config(config).parent_run_id is not None else None
