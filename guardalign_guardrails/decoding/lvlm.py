"""A local vision-language model with the safety prefix, calibrated attention and a guard in front.

Both frameworks' classes are thin skins of this one. A chat goes one way: guard, template, tokens, one generate call,
text; whole answers, streams and batches differ only in who waits for what.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from guardalign_guardrails.content.chat import OnViolation
from guardalign_guardrails.decoding import loading
from guardalign_guardrails.decoding.attention.adapter import AttentionAdapter
from guardalign_guardrails.decoding.attention.calibration import calibration_for
from guardalign_guardrails.decoding.chat.admission import Admission, aadmit, admit
from guardalign_guardrails.decoding.chat.answer import Answer, Piece
from guardalign_guardrails.decoding.chat.generation import Engine, Order
from guardalign_guardrails.decoding.chat.grammar import Grammars
from guardalign_guardrails.decoding.chat.messages import ChatInput, messages_of
from guardalign_guardrails.decoding.chat.progress import Row
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.chat.template import knows_tools
from guardalign_guardrails.decoding.chat.tool_choice import ToolChoice, Tools, offer_of
from guardalign_guardrails.decoding.chat.tools import ToolFormat, format_of
from guardalign_guardrails.decoding.chat.worker import Worker
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.errors import UnsafeContentError
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.images import ImageLimits


class CalibratedLVLM:
    """Answers chats with images by a local model that keeps its safety prefix in mind.

    Safe to use from several threads and event loops: requests queue for the model in the order they came.

    Args:
        model: A transformers model that generates. Outside of generations it is left as it was.
        processor: Its processor; its tokenizer if it reads words only.
        name: For reports; None for the class's name.
        calibration: How strongly the prefix is held in attention; None, or ``gamma=0``, for plain decoding.
        prefix: The safety prefix; a blank text for none.
        guard: Checks the images of every chat first; None to check nothing.
        on_violation: What a blocked image of the current user turn means. Routed ones count as blocked.
        settings: Defaults of generations.
        tool_format: How the model writes tool calls; ``auto`` for what its chat template says, None for not at all.
        context_window: Most tokens of prompt and answer together; None for what the model's config says.
        limits: What an image may cost to decode where there is no guard.
        adapter: Where the parts of a model with code of its own are; None for models of transformers.

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
        guard: Guard | None = None,
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
            used.self_test()
        stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._engine = Engine(
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
        self.guard = guard
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
    ) -> CalibratedLVLM:
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
        loaded = loading.load(
            name,
            revision=revision,
            dtype=dtype,
            device_map=device_map,
            quantization_config=quantization_config,
            trust_remote_code=trust_remote_code,
            local_files_only=local_files_only,
            model_kwargs=model_kwargs,
            cache_dir=cache_dir,
        )
        return cls(loaded.model, loaded.processor, name=loaded.name, **settings)

    def variant(
        self,
        *,
        calibration: CalibrationConfig | None,
        prefix: SafetyPrefix | None = None,
    ) -> CalibratedLVLM:
        """Another one of the same model, with other safety settings; the two queue for the model together.

        Raises:
            CalibrationError: The model has not the layers or heads asked for, or the self-test failed.
        """
        placed = prefix or self.prefix
        used = calibration_for(self.model, calibration, placed, self._adapter)
        if used is not None:
            # In turn with generations: it switches the model's attention.
            self._worker.run(lambda _: used.self_test())
        other = copy.copy(self)
        other._engine = replace(self._engine, prefix=placed, calibration=used)  # noqa: SLF001  its own class
        return other

    # What it is

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._engine.model

    @property
    def processor(self) -> Any:
        """Its processor, or its tokenizer if it reads words only."""
        return self._engine.processor

    @property
    def prefix(self) -> SafetyPrefix:
        """The safety prefix."""
        return self._engine.prefix

    @property
    def calibration(self) -> CalibrationConfig | None:
        """How attention is calibrated; None if it is not."""
        used = self._engine.calibration
        return None if used is None else cast("CalibrationConfig", used.config)

    @property
    def is_multimodal(self) -> bool:
        """Whether it can be given images."""
        return self._engine.is_multimodal

    @property
    def knows_tools(self) -> bool:
        """Whether it can be given tools and its calls can be read."""
        return self._engine.tool_format is not None and knows_tools(self.processor)

    @property
    def context_window(self) -> int | None:
        """Most tokens of prompt and answer together; None if the model states none."""
        return self._engine.context_window

    @property
    def identity(self) -> dict[str, Any]:
        """All that an answer depends on beside the chat and the settings of the call, as plain data; for cache keys."""
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
        (admission,) = admit(None, [messages_of(chat)], "notice", self.limits)
        return self._engine.prompts([admission], tools)[0].lengths[0]

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
            chat: A user's words, or messages.
            tools: JSON schemas of functions the model may call.
            tool_choice: ``auto`` for the model's own choice, ``none`` for no tool, ``required`` for a call of one of
                them, or the name of the one to call. A call that has to be made is written by a grammar; it is missing
                only where ``max_new_tokens`` cuts it off.
            settings: In place of the model's defaults.
            is_reported: Whether shares of attention are measured for the answer's ``calibration``.
            logits_processors: More of transformers' processors, such as those of a grammar.

        Returns:
            The answer; the policy's refusal if an image was blocked and ``on_violation`` is ``refuse``.

        Raises:
            PromptError: The chat cannot be written into a prompt, or the tool to call is not among the tools.
            ContextOverflow: It is too long.
            ImageDecodeError: An image cannot be opened.
            UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``.
        """
        order = self._order(settings, tools, tool_choice, is_reported, logits_processors)
        (admission,) = admit(self.guard, [messages_of(chat)], self.on_violation, self.limits)
        if (refusal := self._refusal(admission)) is not None:
            return refusal
        return self._worker.run(lambda cancelled: self._engine.answers([admission], order, cancelled)[0])

    async def achat(
        self,
        chat: ChatInput,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        settings: GenerationSettings | None = None,
        is_reported: bool = False,
        logits_processors: Sequence[Any] = (),
    ) -> Answer:
        """`chat` without blocking the event loop; cancelling the task frees the model within one token."""
        order = self._order(settings, tools, tool_choice, is_reported, logits_processors)
        (admission,) = await aadmit(self.guard, [messages_of(chat)], self.on_violation, self.limits)
        if (refusal := self._refusal(admission)) is not None:
            return refusal
        return await self._worker.arun(lambda cancelled: self._engine.answers([admission], order, cancelled)[0])

    def stream(
        self,
        chat: ChatInput,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        settings: GenerationSettings | None = None,
        is_reported: bool = False,
        logits_processors: Sequence[Any] = (),
    ) -> Iterator[Piece]:
        """`chat` in pieces, as tokens come: verdicts first, the whole answer last. Closing it frees the model.

        What may turn out to be a call in JSON comes with the last piece only.
        """
        order = self._order(settings, tools, tool_choice, is_reported, logits_processors)
        (admission,) = admit(self.guard, [messages_of(chat)], self.on_violation, self.limits)
        if (refusal := self._refusal(admission)) is not None:
            yield Piece(refusal.text, answer=refusal, verdicts=refusal.verdicts)
            return
        if admission.verdicts:
            yield Piece("", verdicts=admission.verdicts)
        pieces = self._worker.stream(self._streaming(admission, order))
        with contextlib.closing(cast("Any", pieces)):
            yield from pieces

    async def astream(
        self,
        chat: ChatInput,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        settings: GenerationSettings | None = None,
        is_reported: bool = False,
        logits_processors: Sequence[Any] = (),
    ) -> AsyncIterator[Piece]:
        """`stream` without blocking the event loop."""
        order = self._order(settings, tools, tool_choice, is_reported, logits_processors)
        (admission,) = await aadmit(self.guard, [messages_of(chat)], self.on_violation, self.limits)
        if (refusal := self._refusal(admission)) is not None:
            yield Piece(refusal.text, answer=refusal, verdicts=refusal.verdicts)
            return
        if admission.verdicts:
            yield Piece("", verdicts=admission.verdicts)
        async with aclosing(cast("Any", self._worker.astream(self._streaming(admission, order)))) as pieces:
            async for piece in pieces:
                yield piece

    def batch(
        self,
        chats: Sequence[ChatInput],
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        settings: GenerationSettings | None = None,
        is_reported: bool = False,
    ) -> list[Answer]:
        """Answer chats together: one pass of the guard's encoder, then one generation, or two.

        Chats with images and chats without are a generation each. Raises what `chat` raises.
        """
        order = self._order(settings, tools, tool_choice, is_reported)
        read = [messages_of(chat) for chat in chats]
        admissions = admit(self.guard, read, self.on_violation, self.limits) if read else []
        return self._worker.run(lambda cancelled: self._grouped(admissions, order, cancelled))

    async def abatch(
        self,
        chats: Sequence[ChatInput],
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        settings: GenerationSettings | None = None,
        is_reported: bool = False,
    ) -> list[Answer]:
        """`batch` without blocking the event loop."""
        order = self._order(settings, tools, tool_choice, is_reported)
        read = [messages_of(chat) for chat in chats]
        admissions = await aadmit(self.guard, read, self.on_violation, self.limits) if read else []
        return await self._worker.arun(lambda cancelled: self._grouped(admissions, order, cancelled))

    # How it does it

    def _order(
        self,
        settings: GenerationSettings | None,
        tools: Tools | None,
        tool_choice: ToolChoice,
        is_reported: bool,
        logits_processors: Sequence[Any] = (),
    ) -> Order:
        used = settings or self.settings
        return Order(used, offer_of(tools, tool_choice, used.json_schema), is_reported, tuple(logits_processors))

    def _refusal(self, admission: Admission) -> Answer | None:
        """The policy's answer in the model's place; None if the model is asked."""
        decision = admission.decision
        if decision is None or decision.violation is None or decision.handled_by == "model" or self.guard is None:
            return None
        if decision.handled_by == "error":
            raise UnsafeContentError(decision.violation)
        return Answer(self.guard.policy.refusal_for(decision.violation), "refusal", verdicts=admission.verdicts)

    def _grouped(self, admissions: Sequence[Admission], order: Order, cancelled: threading.Event) -> list[Answer]:
        answers: list[Answer | None] = [self._refusal(admission) for admission in admissions]
        groups: dict[bool, list[int]] = {}
        for place, (admission, answer) in enumerate(zip(admissions, answers, strict=True)):
            if answer is None:
                groups.setdefault(any(message.images for message in admission.messages), []).append(place)
        for places in groups.values():
            own = self._engine.answers([admissions[place] for place in places], order, cancelled)
            for place, answer in zip(places, own, strict=True):
                answers[place] = answer
        return [answer for answer in answers if answer is not None]

    def _streaming(
        self, admission: Admission, order: Order
    ) -> Callable[[threading.Event, Callable[[Piece], None]], None]:
        def job(cancelled: threading.Event, put: Callable[[Piece], None]) -> None:
            sent: list[str] = []
            is_held = bool(order.offer.json_calls)

            def on_token(row: Row) -> None:
                if is_held:
                    return
                text = row.words.piece()
                logprobs = row.new_logprobs()
                if text or logprobs:
                    sent.append(text)
                    put(Piece(text, logprobs))

            def on_head(head: str) -> None:
                sent.append(head)
                put(Piece(head))

            (answer,) = self._engine.answers([admission], order, cancelled, on_token, on_head)
            heard = "".join(sent)
            rest = answer.text[len(heard) :] if answer.text.startswith(heard) else ""
            put(Piece(rest, (answer.logprobs or ()) if is_held else (), answer=answer))

        return job
