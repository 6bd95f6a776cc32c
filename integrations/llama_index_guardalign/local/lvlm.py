"""A local vision-language model with safety prefix, calibrated attention and a guard in front, as a LlamaIndex LLM.

A thin skin: what a chat becomes is the core's business (`guardalign_guardrails.decoding`). Here are LlamaIndex's
messages, options, responses, events, and settings that can be dumped without the weights.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.schema import BaseComponent
from llama_index.core.tools.types import BaseTool
from llama_index_instrumentation.span import active_span_id
from pydantic import Field, PrivateAttr, field_validator
from typing_extensions import Self

from guardalign_guardrails.content.chat import OnViolation
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.guarding.pickles import check_pickles
from guardalign_guardrails.guarding.settings import OptionalGuardField
from llama_index_guardalign.chat.messages import chat_of, without_images
from llama_index_guardalign.events import announce, announced_violations
from llama_index_guardalign.local.call_options import SETTING_NAMES, Order
from llama_index_guardalign.local.responses import Growth, Step, chat_response, completion_response
from llama_index_guardalign.local.structured import SchemaBoundLLM
from llama_index_guardalign.local.tools import schemas_of, selections_of, with_first_call
from llama_index_guardalign.spans import atraced, not_spanned, traced

T = TypeVar("T")
Form: TypeAlias = Callable[[Step, str], T]
"""From a step of an answer and the model's name to a response."""

_SETTINGS: Final[tuple[str, ...]] = ("temperature", "top_p", "stop", "seed")
"""Fields that are settings of a generation by the same name."""


class GuardAlignLVLM(SchemaBoundLLM):
    """A local vision-language model, or language model, that keeps its safety prefix in mind.

    Every image of a chat is checked by ``guard`` first, and the model is given the pixels that were checked. What
    becomes of a blocked image of the current user turn is ``on_violation``'s to say; images of earlier turns, of
    tools and of the model are replaced by a notice, and the chat goes on.

    Weights are loaded when they are first needed (that is also when ``metadata`` is asked for), in one thread; requests
    queue for the model. ``raw`` of a response has ``finish_reason``, ``usage``, ``verdicts`` and ``calibration``. With
    a guard, nobody who traces is shown an image, checked or not.

    Call options: the names of `GenerationSettings`, ``max_tokens``, ``tools``, ``tool_choice`` and ``report``.

    Attributes:
        model_name: A hub repository, a folder, a ``.gguf`` file, or ``smollm2``.
        revision: Branch, tag or commit of the repository.
        dtype: Of the weights, as transformers takes it by name.
        device_map: As transformers takes it; None for the CPU. Needs accelerate.
        quantization_config: As transformers takes it; an object is dumped as its settings.
        trust_remote_code: Whether code from the repository may run.
        local_files_only: Never ask the hub.
        model_kwargs: More arguments for ``from_pretrained``.
        context_window: Most tokens of prompt and answer together; None for what the model's config says.
        calibration: How strongly the prefix is held in attention; None for plain decoding.
        prefix: The safety prefix; a blank text for none.
        guard: Checks images: settings, a ready `Guard` or a `Policy`. None to check nothing.
        on_violation: ``refuse`` answers with the policy's refusal, ``notice`` lets the model answer with a notice in
            the image's place, ``raise`` raises `UnsafeContentError`. Routed images count as blocked.
        max_tokens: Most tokens of an answer.
        temperature: 0 takes the likeliest token each time; None leaves it to the model's own settings.
        top_p: Nucleus; None leaves it to the model.
        stop: Texts that end an answer.
        seed: Makes sampling repeatable on one machine.
        additional_kwargs: More settings of `GenerationSettings`, by name.
        report: Whether shares of attention are measured for ``raw["calibration"]``.
    """

    model_name: str = Field(frozen=True)
    revision: str | None = Field(default=None, frozen=True)
    dtype: str = Field(default="auto", frozen=True)
    device_map: str | dict[str, int | str] | None = Field(default=None, frozen=True)
    quantization_config: dict[str, Any] | None = Field(default=None, frozen=True)
    trust_remote_code: bool = Field(default=False, frozen=True)
    local_files_only: bool = Field(default=False, frozen=True)
    model_kwargs: dict[str, Any] = Field(default_factory=dict, frozen=True)
    context_window: int | None = Field(default=None, gt=0, frozen=True)
    calibration: CalibrationConfig | None = Field(default=CalibrationConfig(), frozen=True)
    prefix: SafetyPrefix = Field(default=SafetyPrefix(), frozen=True)
    guard: OptionalGuardField = Field(default=None, frozen=True)
    on_violation: OnViolation = Field(default="refuse", frozen=True)
    max_tokens: int = Field(default=512, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    additional_kwargs: dict[str, Any] = Field(default_factory=dict)
    report: bool = False

    _lvlm: CalibratedLVLM | None = PrivateAttr(default=None)
    _loading: Any = PrivateAttr(default_factory=threading.Lock)

    @field_validator("quantization_config", mode="before")
    @classmethod
    def _as_settings(cls, value: Any) -> Any:
        return value.to_dict() if hasattr(value, "to_dict") else value

    @field_validator("stop", mode="before")
    @classmethod
    def _as_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @classmethod
    def class_name(cls) -> str:
        """The class's name in dumps. LlamaIndex takes an LLM for multi-modal by it."""
        return "guardalign_multi_modal_llm"

    @classmethod
    def from_lvlm(cls, lvlm: CalibratedLVLM, **settings: Any) -> Self:
        """An LLM around a model that is loaded.

        Args:
            lvlm: Has calibration, prefix, guard, ``on_violation`` and default settings of its own; see its ``variant``
                for another one of the same weights.
            **settings: Other fields, such as ``max_tokens`` or ``callback_manager``.

        Raises:
            ValueError: A setting is the model's own.
        """
        fixed = {
            "model_name": lvlm.name,
            "context_window": lvlm.context_window,
            "calibration": lvlm.calibration,
            "prefix": lvlm.prefix,
            "guard": lvlm.guard,
            "on_violation": lvlm.on_violation,
        }
        if taken := sorted(fixed.keys() & settings.keys()):
            raise ValueError(f"{', '.join(taken)} are the loaded model's own: give a model that has other ones.")
        own = lvlm.settings.model_dump(exclude_defaults=True)
        named = {name: own.pop(name) for name in _SETTINGS if name in own}
        named.update({name: own.pop(theirs) for name, theirs in SETTING_NAMES.items() if theirs in own})
        llm = cls(**{**fixed, **named, "additional_kwargs": own, **settings})
        llm._lvlm = lvlm
        return llm

    # What it is

    @property
    def lvlm(self) -> CalibratedLVLM:
        """The model, loaded on first access.

        Raises:
            ModelUnavailable: It cannot be loaded.
            CalibrationError: It cannot be calibrated.
        """
        with self._loading:
            if self._lvlm is None:
                self._lvlm = CalibratedLVLM.from_pretrained(
                    self.model_name,
                    revision=self.revision,
                    dtype=self.dtype,
                    device_map=self.device_map,
                    quantization_config=self.quantization_config,
                    trust_remote_code=self.trust_remote_code,
                    local_files_only=self.local_files_only,
                    model_kwargs=self.model_kwargs,
                    calibration=self.calibration,
                    prefix=self.prefix,
                    guard=None if self.guard is None else self.guard.guard,
                    on_violation=self.on_violation,
                    context_window=self.context_window,
                )
            return self._lvlm

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans prompts and tools by. Loads the model: its config and template know."""
        lvlm = self.lvlm
        return LLMMetadata(
            context_window=lvlm.context_window or DEFAULT_CONTEXT_WINDOW,
            num_output=self.max_tokens,
            is_chat_model=True,
            is_function_calling_model=lvlm.knows_tools,
            model_name=self.model_name,
            system_role=MessageRole.SYSTEM,
        )

    def to_payload(self) -> dict[str, Any]:
        """What traces are told of the model: nothing of the prompt, and no weights."""
        return {**super().to_payload(), "guardalign": self.lvlm.identity}

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex leaves out what cannot be pickled, and a copy without its guard would let everything pass.
        check_pickles("guard", self.guard)
        # It finds out by pickling each attribute: the weights too, only to leave them out.
        bare = self.model_copy()
        bare._lvlm, bare._loading = None, None  # noqa: SLF001  its own class
        return BaseComponent.__getstate__(bare)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()

    # What it does

    @not_spanned
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat.

        Raises:
            UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``, or the answer is to be JSON.
            ImageDecodeError: An image cannot be opened and there is no guard.
            PromptError: The chat cannot be written into a prompt, or is too long (`ContextOverflow`).
        """
        return traced(self, "chat", self._told(messages), kwargs, lambda: self._whole(chat_response, messages, kwargs))

    @not_spanned
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt, which is what a user says, whether it is ``formatted`` or not."""
        chat = _asked(prompt)
        return traced(self, "complete", prompt, kwargs, lambda: self._whole(completion_response, chat, kwargs))

    @not_spanned
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat` as tokens come; closing the stream frees the model."""
        run = partial(self._stream, chat_response, messages, kwargs)
        return traced(self, "stream_chat", self._told(messages), kwargs, lambda: run(active_span_id.get()))

    @not_spanned
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete` as tokens come."""
        run = partial(self._stream, completion_response, _asked(prompt), kwargs)
        return traced(self, "stream_complete", prompt, kwargs, lambda: run(active_span_id.get()))

    @not_spanned
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` without blocking the event loop; cancelling it frees the model."""
        run = partial(self._awhole, chat_response, messages, kwargs)
        return await self._atraced("achat", self._told(messages), kwargs, run)

    @not_spanned
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete` without blocking the event loop."""
        run = partial(self._awhole, completion_response, _asked(prompt), kwargs)
        return await self._atraced("acomplete", prompt, kwargs, run)

    @not_spanned
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` without blocking the event loop."""
        run = partial(self._begun, chat_response, messages, kwargs)
        return await self._atraced("astream_chat", self._told(messages), kwargs, run)

    @not_spanned
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete` without blocking the event loop."""
        run = partial(self._begun, completion_response, _asked(prompt), kwargs)
        return await self._atraced("astream_complete", prompt, kwargs, run)

    # Tools

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        asked = [] if user_msg is None else [user_msg] if isinstance(user_msg, ChatMessage) else _asked(user_msg)
        choice = tool_choice or ("required" if tool_required else None)
        return {
            "messages": [*(chat_history or ()), *asked],
            "tools": schemas_of(tools),
            **({} if choice is None else {"tool_choice": choice}),
            **kwargs,
        }

    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        if allow_parallel_tool_calls:
            return response
        return response.model_copy(update={"message": with_first_call(response.message)})

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The tools that the model wants run.

        Raises:
            ValueError: There is none, and there has to be one.
        """
        selections = selections_of(response.message)
        if error_on_no_tool_call and not selections:
            raise ValueError("The model called no tool.")
        return selections

    # How it does it

    def _order(self, options: Mapping[str, Any]) -> Order:
        own = {name: value for name in _SETTINGS if (value := getattr(self, name)) is not None}
        defaults = {**self.additional_kwargs, **own, "max_new_tokens": self.max_tokens, "report": self.report}
        return Order.of(defaults, options)

    def _told(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """What of a chat whoever traces is told."""
        return list(messages) if self.guard is None else without_images(messages)

    def _read(self, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
        limits = self.lvlm.limits if self.lvlm.guard is None else self.lvlm.guard.limits
        return chat_of(messages, limits.max_bytes)

    async def _atraced(
        self, name: str, told: Sequence[ChatMessage] | str, options: Mapping[str, Any], run: Callable[[], Awaitable[T]]
    ) -> T:
        # LlamaIndex asks for metadata first, and that must not load a model in the event loop.
        if self._lvlm is None:
            await asyncio.to_thread(lambda: self.lvlm)
        return await atraced(self, name, told, options, run)

    def _whole(self, form: Form[T], messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> T:
        order, chat = self._order(options), self._read(messages)
        with announced_violations(self.class_name()):
            answer = self.lvlm.chat(chat, **order.arguments)
        announce(self.class_name(), answer.verdicts)
        return form(Step.whole(order.finished(answer)), self.model_name)

    async def _awhole(self, form: Form[T], messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> T:
        order, chat = self._order(options), await asyncio.to_thread(self._read, messages)
        with announced_violations(self.class_name()):
            answer = await self.lvlm.achat(chat, **order.arguments)
        announce(self.class_name(), answer.verdicts)
        return form(Step.whole(order.finished(answer)), self.model_name)

    def _stream(
        self, form: Form[T], messages: Sequence[ChatMessage], options: Mapping[str, Any], span_id: str | None
    ) -> Generator[T, None, None]:
        order, chat = self._order(options), self._read(messages)
        growth = Growth(order)
        with (
            announced_violations(self.class_name(), span_id),
            closing(cast("Any", self.lvlm.stream(chat, **order.arguments))) as pieces,
        ):
            for piece in pieces:
                announce(self.class_name(), piece.verdicts, span_id)
                if (step := growth.step(piece)) is not None:
                    yield form(step, self.model_name)

    async def _begun(
        self, form: Form[T], messages: Sequence[ChatMessage], options: Mapping[str, Any]
    ) -> AsyncGenerator[T, None]:
        """The stream, of which LlamaIndex wants to wait for the beginning."""
        return self._astream(form, messages, options, active_span_id.get())

    async def _astream(
        self, form: Form[T], messages: Sequence[ChatMessage], options: Mapping[str, Any], span_id: str | None
    ) -> AsyncGenerator[T, None]:
        order, chat = self._order(options), await asyncio.to_thread(self._read, messages)
        growth = Growth(order)
        with announced_violations(self.class_name(), span_id):
            async with aclosing(cast("Any", self.lvlm.astream(chat, **order.arguments))) as pieces:
                async for piece in pieces:
                    announce(self.class_name(), piece.verdicts, span_id)
                    if (step := growth.step(piece)) is not None:
                        yield form(step, self.model_name)


def _asked(prompt: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=prompt)]
