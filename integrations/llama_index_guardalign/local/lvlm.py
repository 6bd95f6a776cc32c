"""A local vision-language model with safety prefix, calibrated attention and a guard in front, as a LlamaIndex LLM.

The core (`guardalign_guardrails.decoding`) checks, calibrates and generates. Here are LlamaIndex's messages, options,
responses, events, and settings that can be dumped without the weights.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
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
    MessageRole,
)
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import BaseComponent
from llama_index.core.tools.types import BaseTool
from llama_index.core.types import Model
from pydantic import BaseModel, Field, PrivateAttr, field_validator
from typing_extensions import Self

from guardalign_guardrails.content.chat import OnViolation
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.guarding.pickles import check_pickles
from guardalign_guardrails.guarding.settings import OptionalGuardField
from llama_index_guardalign.chat.messages import without_images
from llama_index_guardalign.chat.structured_llm import QuietStructuredLLM
from llama_index_guardalign.local.generation import Form, LocalCall
from llama_index_guardalign.local.options import SETTING_NAMES, arguments_of
from llama_index_guardalign.local.responses import chat_response, completion_response
from llama_index_guardalign.local.structured import Prediction
from llama_index_guardalign.local.tools import schemas_of, selections_of, with_first_call
from llama_index_guardalign.spans import Shown, atraced, not_spanned, traced

if TYPE_CHECKING:
    from llama_index.core.program.utils import FlexibleModel

T = TypeVar("T")
Options: TypeAlias = dict[str, Any] | None

_SETTINGS: Final[tuple[str, ...]] = ("temperature", "top_p", "stop", "seed")
"""Fields that are settings of a generation by the same name."""


class GuardAlignLVLM(FunctionCallingLLM):
    """A local vision-language model, or language model, that keeps its safety prefix in mind.

    Every image of a chat is checked by ``guard`` first, and the model is given the pixels that were checked.
    ``on_violation`` says what a blocked image of the current user turn means; blocked images of earlier turns, of tools
    and of the model are replaced by a notice, and the chat goes on.

    Weights are loaded when they are first needed (that is also when ``metadata`` is asked for), in one thread; requests
    queue for the model. ``raw`` of a response has ``finish_reason``, ``usage``, ``verdicts`` and ``calibration``. With
    a guard, traces show no image, checked or not.

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
        guard: Checks images: a ready `Guard`, a `Policy`, the path of a policy file, or settings. None to check
            nothing.
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
                # What a model is loaded with cannot be changed afterwards.
                own = {name: getattr(self, name) for name, field in type(self).model_fields.items() if field.frozen}
                own["guard"] = None if self.guard is None else self.guard.guard
                self._lvlm = CalibratedLVLM.from_pretrained(own.pop("model_name"), **own)
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
        """What traces show of the model: nothing of the prompt, and no weights."""
        return {**super().to_payload(), "guardalign": self.lvlm.identity}

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex leaves out what cannot be pickled. A copy without its guard would let everything pass, and one
        # without what its model is loaded with would be another model.
        for name, field in type(self).model_fields.items():
            if field.frozen:
                check_pickles(name, getattr(self, name))
        # It finds out by pickling each attribute: the weights too, only to leave them out.
        bare = self.model_copy()
        bare._lvlm, bare._loading = None, None  # noqa: SLF001  its own class
        return BaseComponent.__getstate__(bare)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()

    # Chats and prompts

    @not_spanned
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat.

        Raises:
            UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``, or the answer is to be JSON.
            ImageDecodeError: An image cannot be opened and there is no guard.
            PromptError: The chat cannot be written into a prompt, or is too long (`ContextOverflow`).
        """
        call = self._call(chat_response, messages, kwargs)
        return traced(self, "chat", self._shown(messages), kwargs, call.answer)

    @not_spanned
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt, which is what a user says, whether it is ``formatted`` or not."""
        call = self._call(completion_response, _user_turn(prompt), kwargs)
        return traced(self, "complete", prompt, kwargs, call.answer)

    @not_spanned
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat` as tokens come; closing the stream frees the model."""
        call = self._call(chat_response, messages, kwargs)
        return traced(self, "stream_chat", self._shown(messages), kwargs, call.stream)

    @not_spanned
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete` as tokens come."""
        call = self._call(completion_response, _user_turn(prompt), kwargs)
        return traced(self, "stream_complete", prompt, kwargs, call.stream)

    @not_spanned
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` without blocking the event loop; cancelling it frees the model."""
        call = self._call(chat_response, messages, kwargs)
        return await self._atraced("achat", self._shown(messages), kwargs, call.aanswer)

    @not_spanned
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete` without blocking the event loop."""
        call = self._call(completion_response, _user_turn(prompt), kwargs)
        return await self._atraced("acomplete", prompt, kwargs, call.aanswer)

    @not_spanned
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` without blocking the event loop."""
        call = self._call(chat_response, messages, kwargs)
        return await self._atraced("astream_chat", self._shown(messages), kwargs, call.astream)

    @not_spanned
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete` without blocking the event loop."""
        call = self._call(completion_response, _user_turn(prompt), kwargs)
        return await self._atraced("astream_complete", prompt, kwargs, call.astream)

    # Tools

    @not_spanned
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
        asked = [] if user_msg is None else [user_msg] if isinstance(user_msg, ChatMessage) else _user_turn(user_msg)
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

    # Objects

    @not_spanned
    def structured_predict(
        self, output_cls: type[Model], prompt: BasePromptTemplate, llm_kwargs: Options = None, **prompt_args: Any
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
        run = Prediction(self, output_cls, prompt, llm_kwargs, prompt_args)
        return cast("Model", run.ended(run.program(**run.arguments)))

    @not_spanned
    async def astructured_predict(
        self, output_cls: type[Model], prompt: BasePromptTemplate, llm_kwargs: Options = None, **prompt_args: Any
    ) -> Model:
        """`structured_predict` without blocking the event loop."""
        run = Prediction(self, output_cls, prompt, llm_kwargs, prompt_args)
        return cast("Model", run.ended(await run.program.acall(**run.arguments)))

    @not_spanned
    def stream_structured_predict(
        self, output_cls: type[Model], prompt: BasePromptTemplate, llm_kwargs: Options = None, **prompt_args: Any
    ) -> Generator[Model | FlexibleModel, None, None]:
        """`structured_predict` as it comes; what is still missing is None."""
        run, last = Prediction(self, output_cls, prompt, llm_kwargs, prompt_args), None
        for last in run.program.stream_call(**run.arguments):
            yield cast("Model | FlexibleModel", run.grown(last))
        run.ended(last)

    @not_spanned
    async def astream_structured_predict(
        self, output_cls: type[Model], prompt: BasePromptTemplate, llm_kwargs: Options = None, **prompt_args: Any
    ) -> AsyncGenerator[Model | FlexibleModel, None]:
        """`stream_structured_predict` without blocking the event loop."""

        async def generate() -> AsyncGenerator[Model | FlexibleModel, None]:
            run, last = Prediction(self, output_cls, prompt, llm_kwargs, prompt_args), None
            async for last in await run.program.astream_call(**run.arguments):
                yield cast("Model | FlexibleModel", run.grown(last))
            run.ended(last)

        return generate()

    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> StructuredLLM:
        """An LLM whose answers are objects of a class: in ``raw``, and as JSON in the message."""
        return QuietStructuredLLM(llm=self, output_cls=output_cls, **kwargs)

    # How it does it

    def _shown(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """What traces show of a chat."""
        return list(messages) if self.guard is None else without_images(messages)

    def _call(self, form: Form[T], messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> LocalCall[T]:
        own = {name: value for name in _SETTINGS if (value := getattr(self, name)) is not None}
        defaults = {**self.additional_kwargs, **own, "max_new_tokens": self.max_tokens, "report": self.report}
        arguments = arguments_of(defaults, options)
        return LocalCall(self.class_name(), self.model_name, lambda: self.lvlm, messages, arguments, form)

    async def _atraced(self, name: str, shown: Shown, options: Mapping[str, Any], run: Callable[[], Awaitable[T]]) -> T:
        # LlamaIndex asks for metadata first, and that must not load a model in the event loop.
        if self._lvlm is None:
            await asyncio.to_thread(lambda: self.lvlm)
        return await atraced(self, name, shown, options, run)


def _user_turn(prompt: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=prompt)]
