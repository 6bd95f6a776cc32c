"""Objects of a pydantic class from a local model: its answers are held to the class's JSON schema as it writes.

LlamaIndex would ask for a tool call, or for JSON in the prompt; both depend on a model that follows instructions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.llm import LLM
from llama_index.core.program.utils import get_program_for_llm
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel

from llama_index_guardalign.chat.messages import without_images, without_loose_images
from llama_index_guardalign.spans import DISPATCHER

_TEXT_MODES: Final = (PydanticProgramMode.DEFAULT, PydanticProgramMode.LLM)


class Prediction:
    """One prediction of an object, with LlamaIndex's events around it, in which there is no image.

    Args:
        llm: Its ``chat`` takes a ``json_schema``. With another ``pydantic_program_mode`` than the default and ``LLM``
            LlamaIndex does what it does in that mode.
        output_cls: A pydantic class.
        prompt: Any template.
        llm_kwargs: For ``chat``.
        prompt_args: Fill the template.

    Attributes:
        program: LlamaIndex's program.
        arguments: What it is called with.
    """

    def __init__(
        self,
        llm: LLM,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: Mapping[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> None:
        shown = prompt
        if isinstance(prompt, ChatPromptTemplate):
            shown = prompt.model_copy(update={"message_templates": without_images(prompt.message_templates)})
        shown_args = without_loose_images(prompt_args)
        DISPATCHER.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=shown, template_args=shown_args)
        )
        is_text = llm.pydantic_program_mode in _TEXT_MODES
        mode = PydanticProgramMode.LLM if is_text else llm.pydantic_program_mode
        schema = {"json_schema": output_cls.model_json_schema()} if is_text else {}
        self.program: Any = get_program_for_llm(output_cls, prompt, llm, pydantic_program_mode=mode)
        self.arguments: dict[str, Any] = {"llm_kwargs": {**(llm_kwargs or {}), **schema}, **prompt_args}

    @staticmethod
    def grown(value: Any) -> Any:
        """Report an object that is not complete yet."""
        DISPATCHER.event(LLMStructuredPredictInProgressEvent(output=value))
        return value

    @staticmethod
    def ended(value: Any) -> Any:
        """Report the object."""
        DISPATCHER.event(LLMStructuredPredictEndEvent(output=value))
        return value
