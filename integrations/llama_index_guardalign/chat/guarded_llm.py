"""Any LLM with a guard in front, with its tools and its structured output.

Both are the wrapped LLM's own: it knows how its provider wants tools, and how it is made to answer with objects.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools.types import BaseTool
from llama_index.core.types import Model
from pydantic import BaseModel

from guardalign_guardrails import UnsafeContentError, Verdict
from guardalign_guardrails.errors import SettingsError
from llama_index_guardalign.chat.guarded_chats import GuardedChats, Way
from llama_index_guardalign.chat.messages import without_images
from llama_index_guardalign.chat.refusal import with_record
from llama_index_guardalign.chat.structured_llm import QuietStructuredLLM, template_of
from llama_index_guardalign.spans import atraced, not_spanned, traced

if TYPE_CHECKING:
    from llama_index.core.program.utils import FlexibleModel


class GuardedLLM(GuardedChats):
    """Wraps an LLM so that it never sees what the policy forbids. It is an LLM itself, for agents and engines too.

    By the severest action on an image of the current user turn:

    - ``allow``, ``flag``: the LLM answers.
    - ``prefix``, ``mask``: the LLM answers; it is given the policy's prefix and the masked images.
    - ``route``: ``route_to`` answers, with a notice in the image's place; without ``route_to`` it counts as
      ``block``.
    - ``block``: by ``on_violation``.

    Images of earlier turns, tool results and the model's own are checked, masked and replaced by notices as well, but
    never refused again: a chat can go on after a refusal. What passes is inlined: a path, a stream or a fetched URL
    becomes the very bytes that were checked. Messages without images are passed on as the very same objects.

    There is one LLM call in traces: that of the LLM which answers, with sanitised messages. `GuardVerdictEvent` is
    dispatched for each chat with an image; responses to chats with a finding say so in ``additional_kwargs``. What
    LlamaIndex's ``predict`` tells of its template, and what agents and engines tell of their input, is theirs.

    Attributes:
        llm: The wrapped LLM. Whoever calls it directly goes around the guard.
        guard: Settings, a ready `Guard` or a `Policy`.
        on_violation: ``refuse`` answers with the policy's refusal, and no LLM is asked; ``notice`` lets the LLM
            answer, with a notice in the image's place; ``raise`` raises `UnsafeContentError`.
        route_to: Answers chats whose severest action is ``route``.
        placement: Where the prefix goes: ``system``, or ``user`` for models that know no system message.
    """

    @classmethod
    def class_name(cls) -> str:
        """The class's name in dumps. LlamaIndex takes an LLM for multi-modal by it."""
        return "guarded_multi_modal_llm"

    # Tools

    def chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        """`chat` with tools, offered by the LLM that answers in its own way.

        Raises:
            SettingsError: An LLM that may answer knows no tools.
            UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``.
        """
        messages = self._asked(user_msg, chat_history)
        way = self._way(messages)
        if way.llm is None:
            return traced(self, "chat_with_tools", without_images(messages), kwargs, self._refusal(way).response)
        response = cast("FunctionCallingLLM", way.llm).chat_with_tools(
            tools,
            chat_history=way.messages,
            verbose=verbose,
            allow_parallel_tool_calls=allow_parallel_tool_calls,
            tool_required=tool_required,
            **kwargs,
        )
        return with_record(response, way.verdicts)

    def stream_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> ChatResponseGen:
        """`chat_with_tools` as it comes; the chat is checked before this returns."""
        messages = self._asked(user_msg, chat_history)
        way = self._way(messages)
        if way.llm is None:
            return traced(self, "stream_chat_with_tools", without_images(messages), kwargs, self._refusal(way).stream)
        return cast("FunctionCallingLLM", way.llm).stream_chat_with_tools(
            tools,
            chat_history=way.messages,
            verbose=verbose,
            allow_parallel_tool_calls=allow_parallel_tool_calls,
            tool_required=tool_required,
            **kwargs,
        )

    async def achat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        """`chat_with_tools` without blocking the event loop."""
        messages = self._asked(user_msg, chat_history)
        way = await self._away(messages)
        if way.llm is None:
            refuse = self._refusal(way).aresponse
            return await atraced(self, "achat_with_tools", without_images(messages), kwargs, refuse)
        response = await cast("FunctionCallingLLM", way.llm).achat_with_tools(
            tools,
            chat_history=way.messages,
            verbose=verbose,
            allow_parallel_tool_calls=allow_parallel_tool_calls,
            tool_required=tool_required,
            **kwargs,
        )
        return with_record(response, way.verdicts)

    async def astream_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> ChatResponseAsyncGen:
        """`stream_chat_with_tools` without blocking the event loop."""
        messages = self._asked(user_msg, chat_history)
        way = await self._away(messages)
        if way.llm is None:
            refuse = self._refusal(way).astream
            return await atraced(self, "astream_chat_with_tools", without_images(messages), kwargs, refuse)
        return await cast("FunctionCallingLLM", way.llm).astream_chat_with_tools(
            tools,
            chat_history=way.messages,
            verbose=verbose,
            allow_parallel_tool_calls=allow_parallel_tool_calls,
            tool_required=tool_required,
            **kwargs,
        )

    def _prepare_chat_with_tools(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._wrapped()._prepare_chat_with_tools(tools, *args, **kwargs)  # noqa: SLF001  LlamaIndex's protocol

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls that the wrapped LLM reads in a response."""
        if not isinstance(self.llm, FunctionCallingLLM) and not error_on_no_tool_call:
            # Agents that write code ask every LLM of this class, whatever its metadata says.
            return []
        return self._wrapped().get_tool_calls_from_response(
            response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
        )

    # Objects

    @not_spanned
    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """The wrapped LLM's, with sanitised messages.

        Raises:
            UnsafeContentError: The guard refused: a refusal is no object of the class.
        """
        way = self._way(prompt.format_messages(llm=self.llm, **prompt_args))
        result = _object_llm(way).structured_predict(output_cls, template_of(way.messages), llm_kwargs=llm_kwargs)
        return cast("Model", result)

    @not_spanned
    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """`structured_predict` without blocking the event loop."""
        way = await self._away(prompt.format_messages(llm=self.llm, **prompt_args))
        llm, template = _object_llm(way), template_of(way.messages)
        return cast("Model", await llm.astructured_predict(output_cls, template, llm_kwargs=llm_kwargs))

    @not_spanned
    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Model | FlexibleModel, None, None]:
        """`structured_predict` as it comes."""
        way = self._way(prompt.format_messages(llm=self.llm, **prompt_args))
        return _object_llm(way).stream_structured_predict(output_cls, template_of(way.messages), llm_kwargs=llm_kwargs)

    @not_spanned
    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Model | FlexibleModel, None]:
        """`stream_structured_predict` without blocking the event loop."""
        way = await self._away(prompt.format_messages(llm=self.llm, **prompt_args))
        return await _object_llm(way).astream_structured_predict(
            output_cls, template_of(way.messages), llm_kwargs=llm_kwargs
        )

    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> StructuredLLM:
        """An LLM whose answers are objects of a class: in ``raw``, and as JSON in the message."""
        return QuietStructuredLLM(llm=self, output_cls=output_cls, **kwargs)

    # How it does it

    def _wrapped(self) -> FunctionCallingLLM:
        return cast("FunctionCallingLLM", _calling(self.llm))

    def _asked(self, asked: str | ChatMessage | None, history: Sequence[ChatMessage] | None) -> list[ChatMessage]:
        """The chat that goes with tools; whoever may answer it has to know tools."""
        for llm in (self.llm, self.route_to):
            _calling(llm)
        if asked is None:
            return list(history or ())
        return [*(history or ()), asked if isinstance(asked, ChatMessage) else ChatMessage(content=asked)]


def _calling(llm: LLM | None) -> LLM | None:
    if llm is not None and not isinstance(llm, FunctionCallingLLM):
        raise SettingsError(f"{type(llm).__name__} knows no tools; wrap, and route to, an LLM that does.")
    return llm


def _object_llm(way: Way) -> LLM:
    """Who answers with an object."""
    if way.llm is None:
        # There is an violation whenever nobody answers.
        raise UnsafeContentError(cast("Verdict", way.violation))
    return way.llm
