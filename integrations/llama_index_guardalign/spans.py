"""LlamaIndex's spans, events and callbacks around a call, told of its messages what may be told.

LlamaIndex opens a span around the methods of its components and hands their arguments, images and all, to whoever
traces. Not around a method marked here: an LLM's opens the span itself, with messages of its own choice, and then runs
with the real ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR

Method = TypeVar("Method", bound=Callable[..., Any])
Result = TypeVar("Result")
Told = Sequence[ChatMessage] | str

DISPATCHER: Final = get_dispatcher("llama_index_guardalign")


def not_spanned(method: Method) -> Method:
    """Mark a method so that LlamaIndex opens no span around it, which would show its arguments as they came."""
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


def traced(llm: LLM, name: str, told: Told, options: Mapping[str, Any], run: Callable[[], Result]) -> Result:
    """Run a call within a span of the LLM's method and LlamaIndex's LLM events.

    Args:
        llm: Whose call it is.
        name: Of its method.
        told: The messages, or the prompt, that whoever traces is told.
        options: The call's keyword arguments, which they are told as well.
        run: The call.

    Returns:
        What the call returns; a generator is traced until it ends.
    """

    def call(_: LLM, told: Told, **options: Any) -> Result:
        return run()

    return cast("Result", _spanned(llm, name, told, call)(told, **options))


async def atraced(
    llm: LLM, name: str, told: Told, options: Mapping[str, Any], run: Callable[[], Awaitable[Result]]
) -> Result:
    """`traced` for coroutines."""

    async def call(_: LLM, told: Told, **options: Any) -> Result:
        return await run()

    return cast("Result", await _spanned(llm, name, told, call)(told, **options))


def _spanned(llm: LLM, name: str, told: Told, call: Callable[..., Any]) -> Callable[..., Any]:
    call.__name__, call.__qualname__ = name, f"{type(llm).__name__}.{name}"
    callback = llm_completion_callback() if isinstance(told, str) else llm_chat_callback()
    return cast("Callable[..., Any]", DISPATCHER.span(callback(call)).__get__(llm, type(llm)))
