"""LlamaIndex's spans, events and callbacks around a call, with messages that tracers may see.

LlamaIndex opens a span around the methods of its components and hands their arguments, images and all, to tracers. It
opens none around a method marked here: an LLM's opens the span itself, with messages of its own choice, and then runs
with the real ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar, cast

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR

Method = TypeVar("Method", bound=Callable[..., Any])
Result = TypeVar("Result")
Shown: TypeAlias = Sequence[ChatMessage] | str
"""What a trace shows of a call's input: messages, or a prompt."""

DISPATCHER: Final = get_dispatcher("llama_index_guardalign")


def not_spanned(method: Method) -> Method:
    """Mark a method so that LlamaIndex opens no span around it, which would show its original arguments."""
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


def traced(llm: LLM, name: str, shown: Shown, options: Mapping[str, Any], run: Callable[[], Result]) -> Result:
    """Run a call within a span of the LLM's method and LlamaIndex's LLM events.

    Args:
        llm: The LLM.
        name: The method's.
        shown: What the trace shows of the input.
        options: The call's keyword arguments, which it shows as well.
        run: The call.

    Returns:
        What the call returns; a generator is traced until it ends.
    """

    def call(_: LLM, shown: Shown, **options: Any) -> Result:
        return run()

    return cast("Result", _spanned(llm, name, shown, call)(shown, **options))


async def atraced(
    llm: LLM, name: str, shown: Shown, options: Mapping[str, Any], run: Callable[[], Awaitable[Result]]
) -> Result:
    """`traced` for coroutines."""

    async def call(_: LLM, shown: Shown, **options: Any) -> Result:
        return await run()

    return cast("Result", await _spanned(llm, name, shown, call)(shown, **options))


def _spanned(llm: LLM, name: str, shown: Shown, call: Callable[..., Any]) -> Callable[..., Any]:
    call.__name__, call.__qualname__ = name, f"{type(llm).__name__}.{name}"
    callback = llm_completion_callback() if isinstance(shown, str) else llm_chat_callback()
    return cast("Callable[..., Any]", DISPATCHER.span(callback(call)).__get__(llm, type(llm)))
