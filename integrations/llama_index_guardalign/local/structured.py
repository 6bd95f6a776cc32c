"""Objects of a pydantic class from any local model: its answers are held to the class's JSON schema as it writes.

LlamaIndex would ask for a tool call, or for JSON in words; both depend on a model that does as it is told.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.program.utils import get_program_for_llm
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate
from llama_index.core.types import Model, PydanticProgramMode
from pydantic import BaseModel

from llama_index_guardalign.chat.messages import without_images, without_loose_images
from llama_index_guardalign.chat.structured_llm import QuietStructuredLLM
from llama_index_guardalign.spans import DISPATCHER, not_spanned

if TYPE_CHECKING:
    from llama_index.core.program.utils import FlexibleModel

_BY_WORDS = (PydanticProgramMode.DEFAULT, PydanticProgramMode.LLM)


class SchemaBoundLLM(FunctionCallingLLM):
    """An LLM whose ``chat`` takes a ``json_schema``, which its structured output makes use of.

    With another ``pydantic_program_mode`` than the default and ``LLM`` it does what LlamaIndex does in that mode.
    Whoever traces is told the prompt without the images in it.
    """

    @not_spanned
    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """An object of a class.

        Args:
            output_cls: A pydantic class.
            prompt: Any template.
            llm_kwargs: For ``chat``.
            **prompt_args: Fill the template.

        Raises:
            UnsafeContentError: The guard refused: a refusal is no object of the class.
            ValueError: The answer was cut short.
        """
        _begin(output_cls, prompt, prompt_args)
        result = self._program(output_cls, prompt)(llm_kwargs=self._bound(output_cls, llm_kwargs), **prompt_args)
        return cast("Model", _ended(result))

    @not_spanned
    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """`structured_predict` without blocking the event loop."""
        _begin(output_cls, prompt, prompt_args)
        program = self._program(output_cls, prompt)
        result = await program.acall(llm_kwargs=self._bound(output_cls, llm_kwargs), **prompt_args)
        return cast("Model", _ended(result))

    @not_spanned
    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Model | FlexibleModel, None, None]:
        """`structured_predict` as it comes; what is still missing is None."""
        _begin(output_cls, prompt, prompt_args)
        program = self._program(output_cls, prompt)
        last = None
        for last in program.stream_call(llm_kwargs=self._bound(output_cls, llm_kwargs), **prompt_args):
            DISPATCHER.event(LLMStructuredPredictInProgressEvent(output=last))
            yield cast("Model | FlexibleModel", last)
        _ended(last)

    @not_spanned
    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Model | FlexibleModel, None]:
        """`stream_structured_predict` without blocking the event loop."""

        async def generate() -> AsyncGenerator[Model | FlexibleModel, None]:
            _begin(output_cls, prompt, prompt_args)
            program = self._program(output_cls, prompt)
            last = None
            objects = await program.astream_call(llm_kwargs=self._bound(output_cls, llm_kwargs), **prompt_args)
            async for last in objects:
                DISPATCHER.event(LLMStructuredPredictInProgressEvent(output=last))
                yield cast("Model | FlexibleModel", last)
            _ended(last)

        return generate()

    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> StructuredLLM:
        """An LLM whose answers are objects of a class: in ``raw``, and as JSON in the message."""
        return QuietStructuredLLM(llm=self, output_cls=output_cls, **kwargs)

    def _program(self, output_cls: type[Model], prompt: BasePromptTemplate) -> Any:
        mode = PydanticProgramMode.LLM if self.pydantic_program_mode in _BY_WORDS else self.pydantic_program_mode
        return get_program_for_llm(output_cls, prompt, self, pydantic_program_mode=mode)

    def _bound(self, output_cls: type[BaseModel], llm_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        options = dict(llm_kwargs or {})
        if self.pydantic_program_mode in _BY_WORDS:
            options["json_schema"] = output_cls.model_json_schema()
        return options


def _begin(output_cls: type[BaseModel], prompt: BasePromptTemplate, arguments: dict[str, Any]) -> None:
    if isinstance(prompt, ChatPromptTemplate):
        told = without_images(prompt.message_templates)
        prompt = prompt.model_copy(update={"message_templates": told})
    DISPATCHER.event(
        LLMStructuredPredictStartEvent(
            output_cls=output_cls, template=prompt, template_args=without_loose_images(arguments)
        )
    )


def _ended(result: Any) -> Any:
    DISPATCHER.event(LLMStructuredPredictEndEvent(output=result))
    return result
