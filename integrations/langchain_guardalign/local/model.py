"""The chat model around a local vision-language model: guard, safety prefix and calibrated attention in one.

One class with LangChain's methods; its parts are functions: `identity` says what it is, `calls` reads arguments,
`generation` answers, `batches` joins calls, `structured` parses, `weights` loads. The core does the rest.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, Literal, cast

from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, SkipValidation, field_validator, model_validator
from typing_extensions import Self

from guardalign_guardrails.content.chat import OnViolation
from guardalign_guardrails.errors import ModelUnavailable
from guardalign_guardrails.guarding.settings import OptionalGuardField

try:
    from guardalign_guardrails.decoding.chat.settings import GenerationSettings
    from guardalign_guardrails.decoding.chat.tool_choice import offer_of
    from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
    from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
except ImportError as error:
    raise ImportError(
        "ChatGuardAlign needs transformers: pip install 'guardalign-guardrails[langchain,local]'."
    ) from error

from langchain_guardalign.component import DumpableComponent
from langchain_guardalign.events import AsyncLLMRun, Configs, LLMRun, stream_config
from langchain_guardalign.local.batches import arun_batch, run_batch
from langchain_guardalign.local.calls import SETTINGS, arguments_of, check_tools, settings_of, tools_of
from langchain_guardalign.local.generation import agenerate, astream, generate, stream
from langchain_guardalign.local.identity import LOADING_FIELDS, identifying_params, plain_fields, profile_of
from langchain_guardalign.local.messages import chat_of
from langchain_guardalign.local.structured import structured_output
from langchain_guardalign.local.weights import Weights, WeightsView

if TYPE_CHECKING:
    from langchain_core.language_models import ModelProfile

# What code that is written for any chat model gives, and only a service needs.
_OF_SERVICES = ("api_key", "base_url", "max_retries", "request_timeout", "stream_usage", "streaming", "timeout")


class ChatGuardAlign(DumpableComponent, BaseChatModel):
    """Chats with a local vision-language model that keeps its safety prefix in mind.

    Before the model sees a chat, ``guard`` checks its images: unsafe regions are masked, and a blocked image of the
    current user turn is refused, by ``on_violation``. Without a guard, images are opened unchecked. While it answers,
    attention to the safety prefix is amplified by ``calibration``.

    Nothing is loaded before the first answer, or before `lvlm` is asked for. Calls queue for the model in the order
    they came; ``batch`` and ``abatch`` generate ``batch_size`` answers at a time. Arguments of a call are settings of
    its generation by their names here, ``tools``, ``tool_choice``, ``response_format`` and ``report``.

    Answers have in ``response_metadata``: ``model_name``, ``finish_reason`` (``stop``, ``length``, ``tool_calls``, or
    ``content_filter`` for the policy's refusal), ``calibration``, ``logprobs`` if asked for, and ``guardalign``, the
    findings in the chat's images. The custom event ``guardalign.verdict`` has the verdicts on all of them.

    A trace of the run holds the messages as they came, unsafe images included.

    Attributes:
        model: A hub repository, a folder, a GGUF file or ``smollm2``; not given with ``lvlm``.
        revision: Branch, tag or commit of the repository.
        dtype: Of the weights, as transformers takes it.
        device_map: As transformers takes it; None for the CPU.
        quantization_config: As transformers takes it.
        trust_remote_code: Whether code from the repository may run.
        local_files_only: Never ask the hub.
        model_kwargs: More arguments for ``from_pretrained``. A ``token`` among them is kept out of dumps and traces.
        temperature: 0 takes the likeliest token each time. None, here and below, leaves a setting to the model.
        top_p: Nucleus: the smallest set of tokens with this probability together.
        top_k: Only the k likeliest tokens.
        max_tokens: Most tokens of an answer; None for 512.
        stop: Texts that end an answer; they are not part of it.
        seed: Makes sampling repeatable on one machine; that of a batch only as a whole.
        repetition_penalty: Above 1 makes tokens that were there already less likely.
        num_beams: Beams; above 1 there is nothing to stream until the end.
        logprobs: Whether answers have each token's log-probability.
        top_logprobs: How many of the likeliest tokens come with each.
        generate_kwargs: More settings of transformers' ``GenerationConfig``.
        calibration: How strongly the prefix is held in attention; None for plain decoding.
        prefix: The safety prefix, and where it goes.
        guard: Checks the images of every chat: a guard, a policy or its file's path, or settings. None checks nothing.
        on_violation: ``refuse`` answers with the policy's refusal, and the model is not asked; ``notice`` lets it
            answer, with a notice in the image's place; ``raise`` raises `UnsafeContentError`.
        report: Whether answers have the prefix's share of attention before and after calibration.
        batch_size: Most chats of one generation.
        source: Given as ``lvlm``: a ready model in place of a name. Its settings are the defaults of the others.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", populate_by_name=True)

    model: str = Field(validation_alias=AliasChoices("model", "model_name"))
    revision: str | None = None
    dtype: str = "auto"
    device_map: Any = None
    quantization_config: Any = Field(default=None, repr=False)
    trust_remote_code: bool = False
    local_files_only: bool = False
    model_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = Field(default=None, validation_alias=AliasChoices("max_tokens", "max_new_tokens"))
    stop: list[str] | None = Field(default=None, validation_alias=AliasChoices("stop", "stop_sequences"))
    seed: int | None = None
    repetition_penalty: float | None = None
    num_beams: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    generate_kwargs: dict[str, Any] | None = None

    calibration: CalibrationConfig | None = CalibrationConfig()
    prefix: SafetyPrefix = SafetyPrefix()
    guard: OptionalGuardField = None
    on_violation: OnViolation = "refuse"
    report: bool = False
    batch_size: int = Field(default=8, ge=1)
    source: SkipValidation[Weights] = Field(default=cast("Weights", None), alias="lvlm", exclude=True, repr=False)

    # The model with the settings as they were when it was last used: fields can be assigned to.
    _view: WeightsView | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_the_ready_model(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = {name: value for name, value in values.items() if name not in _OF_SERVICES}
        lvlm = given.pop("lvlm", None)
        if isinstance(lvlm, CalibratedLVLM):
            if "model_name" not in given:
                given.setdefault("model", lvlm.name)
            for name in ("calibration", "prefix", "guard", "on_violation"):
                given.setdefault(name, getattr(lvlm, name))
            lvlm = Weights(None, lvlm)
        return given if lvlm is None else {**given, "source": lvlm}

    @field_validator("dtype", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return "auto" if value is None else str(value).removeprefix("torch.")

    @model_validator(mode="after")
    def _has_something_to_load(self) -> Self:
        loading = {name: getattr(self, name) for name in LOADING_FIELDS}
        ready = None if self.source is None else self.source.ready
        if ready is not None:
            fields = type(self).model_fields
            defaults = {name: fields[name].get_default(call_default_factory=True) for name in LOADING_FIELDS}
            if self.model != ready.name or loading != defaults:
                raise ValueError("a ready model was loaded already: give either it, or a name and how to load it")
        elif self.source is None or self.source.arguments != {"name": self.model, **loading}:
            self.source = Weights({"name": self.model, **loading})
        self._settings()
        return self

    @classmethod
    def from_lvlm(cls, lvlm: CalibratedLVLM, **settings: Any) -> Self:
        """A chat model around a ready model, with its safety settings unless others are given."""
        return cls(**{"lvlm": lvlm, **settings})

    # What it is

    @property
    def lvlm(self) -> CalibratedLVLM:
        """The model in use; the weights are loaded when it is first used.

        Raises:
            ModelUnavailable: It cannot be loaded.
            CalibrationError: It cannot be calibrated, or not as asked.
        """
        guard = None if self.guard is None else self.guard.guard
        key = (self.source, self.calibration, self.prefix, guard, self.on_violation)
        view = self._view
        if view is None or view.key != key:
            bare = self._profile
            self._view = view = WeightsView.of(*key)
            if self.profile == bare:
                self.profile = self._profile
        return view.lvlm

    async def alvlm(self) -> CalibratedLVLM:
        """`lvlm` without blocking the event loop."""
        is_loaded = self.loaded is not None and self._view is not None
        return self.lvlm if is_loaded else await asyncio.to_thread(lambda: self.lvlm)

    @property
    def loaded(self) -> CalibratedLVLM | None:
        """The model, perhaps with other safety settings; None before it is loaded."""
        # LangChain asks for the profile while the chat model is being made, when there is no source yet.
        return None if self.source is None else self.source.loaded

    @property
    def model_name(self) -> str:
        """The model's name."""
        return self.model

    @property
    def _llm_type(self) -> str:
        return "guardalign-chat"

    def _settings(self) -> GenerationSettings:
        return settings_of(self.source.settings, {name: getattr(self, name) for name in SETTINGS})

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return identifying_params(dict(self), self.source)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # LangChain's own is made of the dump, which has nothing of a ready model or guard.
        return json.dumps([self._identifying_params, kwargs, stop], sort_keys=True, default=str)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        settings = self._settings()
        known = {"temperature": settings.temperature, "max_tokens": settings.max_new_tokens, **kwargs}
        params = super()._get_ls_params(stop=stop or list(settings.stop) or None, **known)
        params["ls_provider"] = "guardalign"
        return params

    @property
    def _profile(self) -> ModelProfile:
        can_fetch = self.guard is not None and self.guard.guard.fetcher is not None
        return profile_of(self.model, self.loaded, can_fetch=can_fetch)

    def _resolve_model_profile(self) -> ModelProfile | None:
        return self._profile

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """The fields that are not JSON, as JSON, without secrets."""
        return plain_fields(dict(self))

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """What ``dumps`` writes."""
        is_ready = self.source.ready is not None or (self.guard is not None and self.guard.is_ready_guard)
        return self.to_json_not_implemented() if is_ready else super().to_json()

    def get_token_ids(self, text: str) -> list[int]:
        """A text's tokens, without any that the model puts around texts."""
        processor = self.lvlm.processor
        tokenizer = getattr(processor, "tokenizer", processor)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None, **_: Any
    ) -> int:
        """Tokens of a chat's prompt, with image tokens and the prefix; nothing is checked or generated."""
        return self.lvlm.count_tokens(chat_of(messages), tools=tools_of(tools or ()) or None)

    # What it makes

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools.

        Args:
            tools: Functions, classes, tools or JSON schemas.
            tool_choice: ``auto``, ``none``, ``any`` (``required``, True) or a tool's name; the latter by a grammar, so
                that there is one call for certain unless ``max_tokens`` cuts it off.
            **kwargs: More arguments of calls.

        Raises:
            PromptError: The model knows no tools (raised by the call if nothing is loaded yet), or the choice is none.
        """
        given = tools_of(tools)
        offer_of(given, tool_choice)
        if self.loaded is not None:
            check_tools(given, self.loaded)
        choice = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=list(given), **choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Literal["json_schema", "json_mode", "function_calling"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers that are JSON of a schema, by a grammar that leaves the model no other choice.

        The prompt does not hold the schema; say in the chat what you want. A refusal is no object of it:
        `UnsafeContentError` is raised, or with ``include_raw`` is the ``parsing_error``.

        Args:
            schema: A pydantic class, for objects of it; a ``TypedDict`` or a JSON schema, for dictionaries. With
                ``json_mode`` it may be left out, for any JSON object.
            method: ``json_schema`` works with any model, and ``json_mode`` is the same if a schema is given;
                ``function_calling`` forces a tool call instead, for models that know tools.
            include_raw: Whether results are mappings of ``raw``, ``parsed`` and ``parsing_error``.
            strict: Ignored: a grammar is always strict.
            **kwargs: More arguments of calls.

        Raises:
            PromptError: The schema cannot be read, or the model knows no tools and was to call one.
            ValueError: There is no such method, or no schema.
        """
        return structured_output(self, schema, method, include_raw=include_raw, **kwargs)

    # What it does

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: LLMRun = None, **kwargs: Any
    ) -> ChatResult:
        return generate(self, messages, self._arguments(stop, kwargs), run_manager)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: AsyncLLMRun = None, **kwargs: Any
    ) -> ChatResult:
        return await agenerate(self, messages, self._arguments(stop, kwargs), run_manager)

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: LLMRun = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        return stream(self, messages, self._arguments(stop, kwargs), run_manager)

    def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: AsyncLLMRun = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        return astream(self, messages, self._arguments(stop, kwargs), run_manager)

    def stream(
        self, input: Any, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """The answer in chunks, as tokens come. Closing it frees the model within one token."""
        with closing(cast("Any", super().stream(input, config, stop=stop, **kwargs))) as chunks:
            with stream_config(config):
                first = next(chunks)
            yield first
            yield from chunks

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """`stream` without blocking the event loop."""
        async with aclosing(cast("Any", super().astream(input, config, stop=stop, **kwargs))) as chunks:
            with stream_config(config):
                first = await anext(chunks)
            yield first
            async for chunk in chunks:
                yield chunk

    def batch(
        self, inputs: list[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """Answer inputs, ``batch_size`` or ``max_concurrency`` of them by one generation; each is a run of its own."""
        return run_batch(self, inputs, config, kwargs, return_exceptions=return_exceptions)

    async def abatch(
        self, inputs: list[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """`batch` without blocking the event loop."""
        return await arun_batch(self, inputs, config, kwargs, return_exceptions=return_exceptions)

    def _arguments(self, stop: list[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in kwargs.items() if name != "model"}
        if kwargs.get("model", self.model) != self.model:
            raise ModelUnavailable("One chat model is one local model; make another ChatGuardAlign for another.")
        stop = stop or given.pop("stop", None)
        own = {name: getattr(self, name) for name in SETTINGS}
        return arguments_of(self.source.settings, own, {**given, "stop": stop}, is_reported=self.report)
