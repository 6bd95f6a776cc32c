"""An LLM whose answers are objects, without traces of its own: LlamaIndex's would show the original messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    MessageRole,
)
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import ChatPromptTemplate
from pydantic import BaseModel

from llama_index_guardalign.spans import not_spanned


class QuietStructuredLLM(StructuredLLM):
    """LlamaIndex's own, without a span and events around those of the LLM in it, which would show images."""

    @not_spanned
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer with an object of the class."""
        return _response(self.llm.structured_predict(self.output_cls, template_of(messages), llm_kwargs=kwargs))

    @not_spanned
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` without blocking the event loop."""
        return _response(await self.llm.astructured_predict(self.output_cls, template_of(messages), llm_kwargs=kwargs))

    @not_spanned
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat` as it comes."""
        for partial in self.llm.stream_structured_predict(self.output_cls, template_of(messages), llm_kwargs=kwargs):
            yield _response(partial)

    @not_spanned
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` without blocking the event loop."""

        async def responses() -> ChatResponseAsyncGen:
            objects = await self.llm.astream_structured_predict(
                self.output_cls, template_of(messages), llm_kwargs=kwargs
            )
            async for partial in objects:
                yield _response(partial)

        return responses()


def template_of(messages: Sequence[ChatMessage]) -> Any:
    """Messages as the template that structured output takes."""
    return ChatPromptTemplate(message_templates=messages)


def _response(value: BaseModel) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=value.model_dump_json()), raw=value)
