"""A local vision-language model with the safety prefix, calibrated attention and a guard in front.

The adapters' classes convert to this one. Every chat takes the same steps: admission by the guard, template, tokens,
one generate call, text. Whole answers, streams and batches differ only in what the caller waits for.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from typing_extensions import Self, Unpack

from guardalign_guardrails.content.chat import OnViolation
from guardalign_guardrails.decoding import loading
from guardalign_guardrails.decoding.attention.adapter import AttentionAdapter
from guardalign_guardrails.decoding.attention.calibration import calibration_for
from guardalign_guardrails.decoding.chat.admission import Admission, aadmit, admit
from guardalign_guardrails.decoding.chat.answer import Answer, AnswerChunk
from guardalign_guardrails.decoding.chat.generation import ChatOptions, GenerationRequest, Generator
from guardalign_guardrails.decoding.chat.grammar import Grammars
from guardalign_guardrails.decoding.chat.messages import ChatInput, messages_of
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.chat.tool_choice import ToolChoice, Tools
from guardalign_guardrails.decoding.chat.tools import ToolFormat, format_of
from guardalign_guardrails.decoding.chat.worker import Job, StreamJob, Worker
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.errors import NotPicklable
from guardalign_guardrails.guarding.forks import mark_use
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.guarding.pickles import check_pickles
from guardalign_guardrails.guarding.settings import GuardLike, GuardSettings
from guardalign_guardrails.images import ImageLimits


class CalibratedLVLM:
    """Answers chats with images by a local model whose attention to the safety prefix is calibrated.

    Safe to use from several threads and event loops: requests queue for the model in their order. One that was loaded
    by name pickles: the name travels, and the weights are loaded again where it arrives. Copies share the model.

    Args:
        model: A transformers model that generates. Outside of generations it is unchanged.
        processor: Its processor; its tokenizer if it reads text only.
        name: For reports; None for the class's name.
        calibration: Settings of attention calibration; None, or ``gamma=0``, for plain decoding.
        prefix: The safety prefix; a blank text for none.
        guard: Checks the images of every chat first: a `Guard`, a `Policy`, the path of a policy file, or
            `GuardSettings`. None to check nothing.
        on_violation: What a blocked image of the current user turn means. Routed images count as blocked.
        settings: Defaults of generations.
        tool_format: Format of the model's tool calls; ``auto`` for the one its chat template teaches, None for none.
        context_window: Most tokens of prompt and answer together; None for what the model's config says.
        limits: What an image may cost to decode where there is no guard.
        adapter: The parts of a model with code of its own; None for models of transformers.

    Raises:
        CalibrationError: The model cannot be calibrated, or its self-test failed.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str | None = None,
        calibration: CalibrationConfig | None = CalibrationConfig(),  # noqa: B008  frozen
        prefix: SafetyPrefix = SafetyPrefix(),  # noqa: B008  frozen
        guard: GuardLike = None,
        on_violation: OnViolation = "refuse",
        settings: GenerationSettings = GenerationSettings(),  # noqa: B008  frozen
        tool_format: ToolFormat | Literal["auto"] | None = "auto",
        context_window: int | None = None,
        limits: ImageLimits | None = None,
        adapter: AttentionAdapter | None = None,
    ) -> None:
        tokenizer = getattr(processor, "tokenizer", processor)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        used = calibration_for(model, calibration, prefix, adapter)
        if used is not None:
            mark_use()
            used.self_test()
        stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._generator = Generator(
            model,
            processor,
            prefix,
            used,
            format_of(processor) if tool_format == "auto" else tool_format,
            context_window or stated,
            Grammars(tokenizer, model.config.get_text_config().vocab_size),
        )
        self._adapter = adapter
        self._worker = Worker()
        self.name = name or type(model).__name__
        self._guard = _settings_of(guard)
        # Arguments of `load`; None for a model that was given.
        self._loading: dict[str, Any] | None = None
        self.on_violation: OnViolation = on_violation
        self.settings = settings
        self.limits = limits or ImageLimits()

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: Any = "auto",
        device_map: Any = None,
        quantization_config: Any = None,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        cache_dir: Path | None = None,
        **settings: Any,
    ) -> Self:
        """Load a model by name; see `guardalign_guardrails.decoding.loading.load`.

        Args:
            name: A hub repository, a folder, a ``.gguf`` file, or ``smollm2``.
            revision: See ``load``.
            dtype: See ``load``.
            device_map: See ``load``.
            quantization_config: See ``load``.
            trust_remote_code: See ``load``.
            local_files_only: See ``load``.
            model_kwargs: See ``load``.
            cache_dir: See ``load``.
            **settings: Of the constructor.

        Raises:
            ModelUnavailable: It cannot be loaded.
            CalibrationError: It cannot be calibrated.
        """
        arguments: dict[str, Any] = {
            "name": name,
            "revision": revision,
            "dtype": dtype,
            "device_map": device_map,
            "quantization_config": quantization_config,
            "trust_remote_code": trust_remote_code,
            "local_files_only": local_files_only,
            "model_kwargs": model_kwargs,
            "cache_dir": cache_dir,
        }
        loaded = loading.load(**arguments)
        lvlm = cls(loaded.model, loaded.processor, name=loaded.name, **settings)
        lvlm._loading = arguments
        return lvlm

    def __copy__(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return copy.copy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._loading is None:
            raise NotPicklable("model", type(self.model).__name__)
        if self._adapter is not None:
            raise NotPicklable("adapter", type(self._adapter).__name__)
        settings = {
            "calibration": self.calibration,
            "prefix": self.prefix,
            "guard": self._guard,
            "on_violation": self.on_violation,
            "settings": self.settings,
            "tool_format": self._generator.tool_format,
            "context_window": self.context_window,
            "limits": self.limits,
        }
        for name, value in {**self._loading, **settings}.items():
            check_pickles(name, value)
        return _loaded_again, (type(self), {**self._loading, **settings})

    def variant(
        self,
        *,
        calibration: CalibrationConfig | None,
        prefix: SafetyPrefix | None = None,
    ) -> Self:
        """Make another one of the same model, with other safety settings; both queue for the model together.

        Raises:
            CalibrationError: The model has no such layers or heads, or the self-test failed.
        """
        placed = prefix or self.prefix
        used = calibration_for(self.model, calibration, placed, self._adapter)
        if used is not None:
            # Between generations, since it switches the model's attention.
            self._worker.run(lambda _: used.self_test())
        other = copy.copy(self)
        other._generator = replace(self._generator, prefix=placed, calibration=used)  # noqa: SLF001  its own class
        return other

    # What it is

    @property
    def guard(self) -> Guard | None:
        """Checks the images of every chat first; None if nothing is checked."""
        return None if self._guard is None else self._guard.guard

    @guard.setter
    def guard(self, guard: GuardLike) -> None:
        self._guard = _settings_of(guard)

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._generator.model

    @property
    def processor(self) -> Any:
        """Its processor, or its tokenizer if it reads text only."""
        return self._generator.processor

    @property
    def prefix(self) -> SafetyPrefix:
        """The safety prefix."""
        return self._generator.prefix

    @property
    def calibration(self) -> CalibrationConfig | None:
        """Settings of attention calibration; None without calibration."""
        used = self._generator.calibration
        return None if used is None else cast("CalibrationConfig", used.config)

    @property
    def is_multimodal(self) -> bool:
        """Whether it reads images."""
        return self._generator.is_multimodal

    @property
    def knows_tools(self) -> bool:
        """Whether it can be given tools and its calls can be parsed."""
        return self._generator.knows_tools

    @property
    def context_window(self) -> int | None:
        """Most tokens of prompt and answer together; None if the model states none."""
        return self._generator.context_window

    @property
    def identity(self) -> dict[str, Any]:
        """What answers depend on beside the chat and the settings of the call, as plain data; for cache keys."""
        guard = self.guard
        return {
            "model": self.name,
            "revision": getattr(self.model.config, "_commit_hash", None),
            "dtype": str(self.model.dtype),
            "calibration": None if self.calibration is None else self.calibration.model_dump(mode="json"),
            "prefix": self.prefix.model_dump(mode="json"),
            "on_violation": self.on_violation,
            "policy_fingerprint": None if guard is None else guard.policy.fingerprint,
            "encoder": None if guard is None else guard.detector.encoder.name,
        }

    def count_tokens(self, chat: ChatInput, *, tools: Tools | None = None) -> int:
        """Tokens of a chat's prompt, image tokens and prefix included; nothing is checked or generated."""
        mark_use()
        (admission,) = admit(None, [messages_of(chat)], "notice", self.limits)
        return self._generator.prompts([admission], tools)[0].lengths[0]

    # What it does

    def chat(
        self,
        chat: ChatInput,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        settings: GenerationSettings | None = None,
        is_reported: bool = False,
        logits_processors: Sequence[Any] = (),
    ) -> Answer:
        """Answer a chat.

        Args:
            chat: A user's text, or messages.
            tools: JSON schemas of functions the model may call.
            tool_choice: ``auto`` for the model's own choice, ``none`` for no tool, ``required`` for a call of one of
                them, or the name of the one to call. A required call is written by a grammar; it is missing only where
                ``max_new_tokens`` cuts it off.
            settings: In place of the model's defaults.
            is_reported: Whether shares of attention are measured for the answer's ``calibration``.
            logits_processors: More of transformers' processors, such as those of a grammar.

        Returns:
            The answer; the policy's refusal if an image was blocked and ``on_violation`` is ``refuse``.

        Raises:
            PromptError: The chat cannot be written into a prompt, or the tool to call is not among the tools.
            ContextOverflow: The chat is too long.
            ImageDecodeError: An image cannot be opened.
            UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``.
            ForkedProcessError: The model has worked in the parent of this process.
        """
        request = GenerationRequest.of(
            self.settings, tools, tool_choice, settings, is_reported=is_reported, logits_processors=logits_processors
        )
        (admission,) = self._admit([chat])
        return admission.refusal or self._worker.run(self._batch_job([admission], request))[0]

    async def achat(self, chat: ChatInput, **options: Unpack[ChatOptions]) -> Answer:
        """`chat` without blocking the event loop; cancelling the task frees the model within one token."""
        request = GenerationRequest.of(self.settings, **options)
        (admission,) = await self._aadmit([chat])
        return admission.refusal or (await self._worker.arun(self._batch_job([admission], request)))[0]

    def stream(self, chat: ChatInput, **options: Unpack[ChatOptions]) -> Iterator[AnswerChunk]:
        """`chat` in chunks, as tokens come: verdicts first, the whole answer last. Closing it frees the model.

        JSON that may be a tool call comes in the last chunk only.
        """
        request = GenerationRequest.of(self.settings, **options)
        (admission,) = self._admit([chat])
        if (first := _first_chunk(admission)) is not None:
            yield first
        if admission.refusal is None:
            chunks = self._worker.stream(self._stream_job(admission, request))
            with closing(cast("Any", chunks)):
                yield from chunks

    async def astream(self, chat: ChatInput, **options: Unpack[ChatOptions]) -> AsyncIterator[AnswerChunk]:
        """`stream` without blocking the event loop."""
        request = GenerationRequest.of(self.settings, **options)
        (admission,) = await self._aadmit([chat])
        if (first := _first_chunk(admission)) is not None:
            yield first
        if admission.refusal is None:
            async with aclosing(cast("Any", self._worker.astream(self._stream_job(admission, request)))) as chunks:
                async for chunk in chunks:
                    yield chunk

    def batch(self, chats: Sequence[ChatInput], **options: Unpack[ChatOptions]) -> list[Answer]:
        """Answer chats together: one batch of the guard's encoder, then one generation, or two.

        Chats with images and chats without are a generation each. It raises what `chat` raises.
        """
        request = GenerationRequest.of(self.settings, **options)
        return self._worker.run(self._batch_job(self._admit(chats), request)) if chats else []

    async def abatch(self, chats: Sequence[ChatInput], **options: Unpack[ChatOptions]) -> list[Answer]:
        """`batch` without blocking the event loop."""
        request = GenerationRequest.of(self.settings, **options)
        return await self._worker.arun(self._batch_job(await self._aadmit(chats), request)) if chats else []

    def _admit(self, chats: Sequence[ChatInput]) -> list[Admission]:
        return admit(self.guard, [messages_of(chat) for chat in chats], self.on_violation, self.limits)

    async def _aadmit(self, chats: Sequence[ChatInput]) -> list[Admission]:
        return await aadmit(self.guard, [messages_of(chat) for chat in chats], self.on_violation, self.limits)

    def _batch_job(self, admissions: Sequence[Admission], request: GenerationRequest) -> Job[list[Answer]]:
        return lambda cancelled: self._generator.batch(admissions, request, cancelled)

    def _stream_job(self, admission: Admission, request: GenerationRequest) -> StreamJob[AnswerChunk]:
        return lambda cancelled, put: self._generator.stream(admission, request, cancelled, put)


def _loaded_again(kind: type[CalibratedLVLM], arguments: dict[str, Any]) -> CalibratedLVLM:
    return kind.from_pretrained(**arguments)


def _settings_of(guard: GuardLike) -> GuardSettings | None:
    return None if guard is None else GuardSettings.of(guard)


def _first_chunk(admission: Admission) -> AnswerChunk | None:
    """The chunk before any token: the policy's refusal, which is the whole answer, or the verdicts, if any."""
    if admission.refusal is not None:
        return AnswerChunk(admission.refusal.text, answer=admission.refusal, verdicts=admission.verdicts)
    return AnswerChunk("", verdicts=admission.verdicts) if admission.verdicts else None
