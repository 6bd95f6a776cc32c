"""Any LLM with a guard in front: chats, prompts, tools and structured output.

For hosted models, of which only the input can be changed: masks and the safety prefix are the half of GuardAlign that
needs no access to a model's inside. Tools and structured output are the wrapped LLM's own: it knows how its provider
wants tools, and how it is made to answer with objects. Its own call is the only one that is traced, with sanitised
messages.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools.types import BaseTool
from llama_index.core.types import Model
from pydantic import BaseModel, Field, SerializeAsAny, model_validator
from typing_extensions import Self

from guardalign_guardrails import UnsafeContentError, Verdict
from guardalign_guardrails.content.chat import OnViolation, PlacementSetting, is_prefix_due, prefixed
from guardalign_guardrails.content.media_text import media_of_text
from guardalign_guardrails.errors import SettingsError
from guardalign_guardrails.guarding.pickles import check_pickles
from guardalign_guardrails.guarding.settings import GuardField, GuardSettings
from llama_index_guardalign.chat.messages import role_of, without_images
from llama_index_guardalign.chat.refusal import Refusal, with_record
from llama_index_guardalign.chat.screening import ScreenedMessages, ascreen_chat, screen_chat
from llama_index_guardalign.chat.structured_llm import QuietStructuredLLM, template_of
from llama_index_guardalign.spans import atraced, not_spanned, traced

if TYPE_CHECKING:
    from llama_index.core.program.utils import FlexibleModel

logger = logging.getLogger(__name__)

T = TypeVar("T")
Tools: TypeAlias = Sequence[BaseTool]
UserMessage: TypeAlias = str | ChatMessage | None
History: TypeAlias = list[ChatMessage] | None
Options: TypeAlias = dict[str, Any] | None

# Engines set them on the LLM they are given, and mean the one that is called.
_OF_THE_CALLED_LLM: Final = ("callback_manager", "rate_limiter")

# What `predict` reads; set on the wrapped LLM, it counts for the guarded one as well.
_OF_THE_WRAPPED_LLM: Final = (
    "completion_to_prompt",
    "messages_to_prompt",
    "output_parser",
    "pydantic_program_mode",
    "query_wrapper_prompt",
    "system_prompt",
)

# How LLM classes of the past were given them.
_IMAGES_BESIDE_A_PROMPT: Final = ("image_documents", "images")


class GuardedLLM(FunctionCallingLLM):
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
    dispatched for each chat with an image; responses to chats with a finding have the verdicts in
    ``additional_kwargs``. What LlamaIndex's ``predict`` reports of its template, and what agents and engines report of
    their input, is theirs.

    Attributes:
        llm: The wrapped LLM. Callers of this one go around the guard.
        guard: A ready `Guard`, a `Policy`, the path of a policy file, or settings.
        on_violation: ``refuse`` answers with the policy's refusal, and no LLM is asked; ``notice`` lets the LLM
            answer, with a notice in the image's place; ``raise`` raises `UnsafeContentError`.
        route_to: Answers chats whose severest action is ``route``.
        placement: Where the prefix goes: ``system``, ``user`` for models that know no system message, or ``auto`` to
            decide by the ``metadata.model_name`` of the LLM that answers.
    """

    llm: SerializeAsAny[LLM]
    guard: GuardField = Field(default_factory=GuardSettings)
    on_violation: OnViolation = "refuse"
    route_to: SerializeAsAny[LLM] | None = None
    placement: PlacementSetting = "auto"

    @model_validator(mode="after")
    def _take_over_from_the_wrapped_llm(self) -> Self:
        for name in _OF_THE_WRAPPED_LLM:
            if name not in self.model_fields_set:
                object.__setattr__(self, name, getattr(self.llm, name))
        if "callback_manager" in self.model_fields_set and self.callback_manager.handlers:
            self._hand_on("callback_manager")
        if self.rate_limiter is not None:
            self._hand_on("rate_limiter")
        return self

    @classmethod
    def class_name(cls) -> str:
        """The class's name in dumps. LlamaIndex takes an LLM for multi-modal by it."""
        return "guarded_multi_modal_llm"

    @property
    def metadata(self) -> LLMMetadata:
        """The wrapped LLM's."""
        own = self.llm.metadata
        is_calling = own.is_function_calling_model and isinstance(self.llm, FunctionCallingLLM)
        return own.model_copy(update={"is_function_calling_model": is_calling})

    def to_payload(self) -> dict[str, Any]:
        """What traces of a refusal report of the LLM."""
        return {"class_name": self.class_name(), **self.metadata.model_dump()}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _OF_THE_CALLED_LLM:
            self._hand_on(name)

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex leaves out what cannot be pickled, and a copy without its guard would have another one.
        for name in ("guard", "llm", "route_to"):
            check_pickles(name, getattr(self, name))
        return super().__getstate__()

    def _hand_on(self, name: str) -> None:
        for llm in (self.llm, self.route_to):
            if llm is not None:
                setattr(llm, name, getattr(self, name))

    # Chats

    @not_spanned
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat.

        Raises:
            UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``.
            GuardAlignError: The guard cannot work: no encoder, no profile.
        """
        return self._run("chat", messages, kwargs, Refusal.response)

    @not_spanned
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat` as it comes; the chat is checked before this returns."""
        return self._run("stream_chat", messages, kwargs, Refusal.stream)

    @not_spanned
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` without blocking the event loop."""
        return await self._arun("achat", messages, kwargs, Refusal.aresponse)

    @not_spanned
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` without blocking the event loop."""
        return await self._arun("astream_chat", messages, kwargs, Refusal.astream)

    # Prompts, in which there is no image

    @not_spanned
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The wrapped LLM's, with the prefix if it is always due.

        Raises:
            SettingsError: Images are given beside the prompt, or it is one.
        """
        return self.llm.complete(self._prompt(prompt, kwargs), formatted=formatted, **kwargs)

    @not_spanned
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete` as it comes."""
        return self.llm.stream_complete(self._prompt(prompt, kwargs), formatted=formatted, **kwargs)

    @not_spanned
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete`, async."""
        return await self.llm.acomplete(self._prompt(prompt, kwargs), formatted=formatted, **kwargs)

    @not_spanned
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete`, async."""
        return await self.llm.astream_complete(self._prompt(prompt, kwargs), formatted=formatted, **kwargs)

    # Tools

    def chat_with_tools(
        self, tools: Tools, user_msg: UserMessage = None, chat_history: History = None, *args: Any, **kwargs: Any
    ) -> ChatResponse:
        """`chat` with tools, offered by the LLM that answers in its own way.

        Raises:
            SettingsError: An LLM that may answer knows no tools.
            UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``.
        """
        messages = self._chat_for_tools(user_msg, chat_history)
        return self._run("chat_with_tools", messages, kwargs, Refusal.response, (tools, None), args)

    def stream_chat_with_tools(
        self, tools: Tools, user_msg: UserMessage = None, chat_history: History = None, *args: Any, **kwargs: Any
    ) -> ChatResponseGen:
        """`chat_with_tools` as it comes; the chat is checked before this returns."""
        messages = self._chat_for_tools(user_msg, chat_history)
        return self._run("stream_chat_with_tools", messages, kwargs, Refusal.stream, (tools, None), args)

    async def achat_with_tools(
        self, tools: Tools, user_msg: UserMessage = None, chat_history: History = None, *args: Any, **kwargs: Any
    ) -> ChatResponse:
        """`chat_with_tools` without blocking the event loop."""
        messages = self._chat_for_tools(user_msg, chat_history)
        return await self._arun("achat_with_tools", messages, kwargs, Refusal.aresponse, (tools, None), args)

    async def astream_chat_with_tools(
        self, tools: Tools, user_msg: UserMessage = None, chat_history: History = None, *args: Any, **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """`stream_chat_with_tools` without blocking the event loop."""
        messages = self._chat_for_tools(user_msg, chat_history)
        return await self._arun("astream_chat_with_tools", messages, kwargs, Refusal.astream, (tools, None), args)

    @not_spanned
    def _prepare_chat_with_tools(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> dict[str, Any]:
        return _tool_llm(self.llm)._prepare_chat_with_tools(tools, *args, **kwargs)  # noqa: SLF001  LlamaIndex's protocol

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls that the wrapped LLM reads in a response."""
        if not isinstance(self.llm, FunctionCallingLLM) and not error_on_no_tool_call:
            # Agents that write code ask every LLM of this class, whatever its metadata says.
            return []
        return _tool_llm(self.llm).get_tool_calls_from_response(
            response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
        )

    # Objects

    @not_spanned
    def structured_predict(
        self, output_cls: type[Model], prompt: BasePromptTemplate, llm_kwargs: Options = None, **prompt_args: Any
    ) -> Model:
        """The wrapped LLM's, with sanitised messages.

        Raises:
            UnsafeContentError: The guard refused: a refusal is no object of the class.
        """
        llm, template = self._object_call(self._screen(prompt.format_messages(llm=self.llm, **prompt_args)))
        return cast("Model", llm.structured_predict(output_cls, template, llm_kwargs=llm_kwargs))

    @not_spanned
    async def astructured_predict(
        self, output_cls: type[Model], prompt: BasePromptTemplate, llm_kwargs: Options = None, **prompt_args: Any
    ) -> Model:
        """`structured_predict` without blocking the event loop."""
        llm, template = self._object_call(await self._ascreen(prompt.format_messages(llm=self.llm, **prompt_args)))
        return cast("Model", await llm.astructured_predict(output_cls, template, llm_kwargs=llm_kwargs))

    @not_spanned
    def stream_structured_predict(
        self, output_cls: type[Model], prompt: BasePromptTemplate, llm_kwargs: Options = None, **prompt_args: Any
    ) -> Generator[Model | FlexibleModel, None, None]:
        """`structured_predict` as it comes."""
        llm, template = self._object_call(self._screen(prompt.format_messages(llm=self.llm, **prompt_args)))
        return llm.stream_structured_predict(output_cls, template, llm_kwargs=llm_kwargs)

    @not_spanned
    async def astream_structured_predict(
        self, output_cls: type[Model], prompt: BasePromptTemplate, llm_kwargs: Options = None, **prompt_args: Any
    ) -> AsyncGenerator[Model | FlexibleModel, None]:
        """`stream_structured_predict` without blocking the event loop."""
        llm, template = self._object_call(await self._ascreen(prompt.format_messages(llm=self.llm, **prompt_args)))
        return await llm.astream_structured_predict(output_cls, template, llm_kwargs=llm_kwargs)

    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> StructuredLLM:
        """An LLM whose answers are objects of a class: in ``raw``, and as JSON in the message."""
        return QuietStructuredLLM(llm=self, output_cls=output_cls, **kwargs)

    # How it decides

    def _screen(self, messages: Sequence[ChatMessage]) -> ScreenedMessages:
        return self._checked(screen_chat(self.guard, messages, **self._screening))

    async def _ascreen(self, messages: Sequence[ChatMessage]) -> ScreenedMessages:
        return self._checked(await ascreen_chat(self.guard, messages, **self._screening))

    @property
    def _screening(self) -> dict[str, Any]:
        can_route = self.route_to is not None
        return {"on_violation": self.on_violation, "can_route": can_route, "component": self.class_name()}

    def _checked(self, chat: ScreenedMessages) -> ScreenedMessages:
        if chat.decision.handled_by == "error":
            if _is_of_an_earlier_message(chat):
                logger.warning(
                    "The user has said something since the message that is blocked, and nobody has answered it. If it "
                    "was raised before, it will be with every message: see GuardedMemory."
                )
            raise _unsafe(chat)
        return chat

    def _llm_for(self, chat: ScreenedMessages) -> LLM | None:
        """The LLM that answers; None if the policy refuses."""
        by = {"model": self.llm, "route": self.route_to or self.llm}
        return by.get(chat.decision.handled_by)

    def _run(
        self,
        name: str,
        messages: Sequence[ChatMessage],
        options: Mapping[str, Any],
        refuse: Callable[[Refusal], T],
        before: tuple[Any, ...] = (),
        after: tuple[Any, ...] = (),
    ) -> T:
        """Call a method of the LLM that answers, or refuse.

        Args:
            name: The method's.
            messages: The chat, which is sanitised first.
            options: Keyword arguments for the method.
            refuse: Makes a refusal what the method returns.
            before: Positional arguments in front of the messages.
            after: Those behind them.
        """
        chat = self._screen(messages)
        if (llm := self._llm_for(chat)) is None:
            refusal = Refusal(cast("str", chat.refusal), chat.verdicts)
            return traced(self, name, without_images(messages), options, partial(refuse, refusal))
        answer = getattr(llm, name)(*before, chat.messages_for(llm, self.placement), *after, **options)
        return with_record(cast("T", answer), chat.verdicts)

    async def _arun(
        self,
        name: str,
        messages: Sequence[ChatMessage],
        options: Mapping[str, Any],
        refuse: Callable[[Refusal], Awaitable[T]],
        before: tuple[Any, ...] = (),
        after: tuple[Any, ...] = (),
    ) -> T:
        """`_run` without blocking the event loop."""
        chat = await self._ascreen(messages)
        if (llm := self._llm_for(chat)) is None:
            refusal = Refusal(cast("str", chat.refusal), chat.verdicts)
            return await atraced(self, name, without_images(messages), options, partial(refuse, refusal))
        answer = await getattr(llm, name)(*before, chat.messages_for(llm, self.placement), *after, **options)
        return with_record(cast("T", answer), chat.verdicts)

    def _object_call(self, chat: ScreenedMessages) -> tuple[LLM, BasePromptTemplate]:
        """The LLM that answers with an object, and its prompt; a refusal is an error."""
        if (llm := self._llm_for(chat)) is None:
            raise _unsafe(chat)
        return llm, template_of(chat.messages_for(llm, self.placement))

    def _prompt(self, prompt: str, options: Mapping[str, Any]) -> str:
        if any(options.get(name) for name in _IMAGES_BESIDE_A_PROMPT):
            raise SettingsError("Images beside a prompt are not guarded; give them as blocks of a message to chat.")
        if media_of_text(prompt) is not None:
            raise SettingsError("A prompt that is an image is not guarded; give it as a block of a message to chat.")
        policy = self.guard.policy
        return prefixed(prompt, policy.prefix.strip()) if is_prefix_due(policy, []) else prompt

    def _chat_for_tools(self, user_msg: UserMessage, history: History) -> list[ChatMessage]:
        """The chat that goes with tools; every LLM that may answer it has to know tools."""
        for llm in (self.llm, self.route_to):
            if llm is not None:
                _tool_llm(llm)
        if user_msg is None:
            return list(history or ())
        return [*(history or ()), user_msg if isinstance(user_msg, ChatMessage) else ChatMessage(content=user_msg)]


def _tool_llm(llm: LLM) -> FunctionCallingLLM:
    if not isinstance(llm, FunctionCallingLLM):
        raise SettingsError(f"{type(llm).__name__} knows no tools; wrap, and route to, an LLM that does.")
    return llm


def _is_of_an_earlier_message(chat: ScreenedMessages) -> bool:
    first = next((place for place, own in enumerate(chat.by_message) if chat.violation in own), len(chat.messages))
    return any(role_of(message) == "user" for message in chat.messages[first + 1 :])


def _unsafe(chat: ScreenedMessages) -> UnsafeContentError:
    # There is a violation wherever no model answers.
    return UnsafeContentError(cast("Verdict", chat.violation))
