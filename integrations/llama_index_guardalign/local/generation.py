"""One call of a local model: a chat of LlamaIndex in, its responses out, and an event with what the guard found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar, cast

from llama_index.core.base.llms.types import ChatMessage
from llama_index_instrumentation.span import active_span_id

from guardalign_guardrails.decoding.chat.answer import Answer
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from llama_index_guardalign.chat.messages import chat_of
from llama_index_guardalign.events import announce, announced_violations
from llama_index_guardalign.local.responses import PartialAnswer, checked

T = TypeVar("T")
Form: TypeAlias = Callable[[PartialAnswer, str], T]
"""From an answer, as far as it has come, and the model's name to a response."""


@dataclass(frozen=True)
class LocalCall(Generic[T]):
    """A call.

    Attributes:
        component: Class name of the LLM, for events.
        model_name: The LLM's model, for responses.
        lvlm: Gives the model; it may have to be loaded.
        messages: The chat.
        arguments: Keyword arguments for the model.
        form: Makes responses.
    """

    component: str
    model_name: str
    lvlm: Callable[[], CalibratedLVLM]
    messages: Sequence[ChatMessage] = field(repr=False)
    arguments: Mapping[str, Any] = field(repr=False)
    form: Form[T]

    def answer(self) -> T:
        """The response.

        Raises:
            UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``, or the answer is to be JSON.
        """
        chat = self._chat()
        with announced_violations(self.component):
            answer = self.lvlm().chat(chat, **self.arguments)
        return self._response(answer)

    async def aanswer(self) -> T:
        """`answer` without blocking the event loop; cancelling it frees the model."""
        chat = await asyncio.to_thread(self._chat)
        with announced_violations(self.component):
            answer = await self.lvlm().achat(chat, **self.arguments)
        return self._response(answer)

    def stream(self) -> Generator[T, None, None]:
        """Responses as tokens come; closing it frees the model. Events go to the span that is open now."""
        return self._stream(active_span_id.get())

    async def astream(self) -> AsyncGenerator[T, None]:
        """`stream` without blocking the event loop, as a coroutine: LlamaIndex waits for its start."""
        return self._astream(active_span_id.get())

    def _chat(self) -> list[dict[str, Any]]:
        lvlm = self.lvlm()
        limits = lvlm.limits if lvlm.guard is None else lvlm.guard.limits
        return chat_of(self.messages, limits.max_bytes)

    def _response(self, answer: Answer) -> T:
        announce(self.component, answer.verdicts)
        whole = PartialAnswer(answer.text, logprobs=answer.logprobs or (), answer=checked(answer, self.arguments))
        return self.form(whole, self.model_name)

    def _stream(self, span_id: str | None) -> Generator[T, None, None]:
        chat, part = self._chat(), PartialAnswer()
        with (
            announced_violations(self.component, span_id),
            closing(cast("Any", self.lvlm().stream(chat, **self.arguments))) as chunks,
        ):
            for chunk in chunks:
                announce(self.component, chunk.verdicts, span_id)
                part = part.with_chunk(chunk, self.arguments)
                if not part.is_empty:
                    yield self.form(part, self.model_name)

    async def _astream(self, span_id: str | None) -> AsyncGenerator[T, None]:
        chat, part = await asyncio.to_thread(self._chat), PartialAnswer()
        with announced_violations(self.component, span_id):
            async with aclosing(cast("Any", self.lvlm().astream(chat, **self.arguments))) as chunks:
                async for chunk in chunks:
                    announce(self.component, chunk.verdicts, span_id)
                    part = part.with_chunk(chunk, self.arguments)
                    if not part.is_empty:
                        yield self.form(part, self.model_name)
