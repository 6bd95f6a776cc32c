"""Generates answers: admitted chats to prompts, one generate call, and its tokens to answers.

It runs in the thread that has the model for itself and knows nothing of threads and event loops; `worker` does.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch

from guardalign_guardrails.decoding.attention.calibration import CalibrationReport
from guardalign_guardrails.decoding.chat.admission import Admission
from guardalign_guardrails.decoding.chat.answer import Answer, AnswerChunk, FinishReason, Usage
from guardalign_guardrails.decoding.chat.grammar import Grammars
from guardalign_guardrails.decoding.chat.incremental_decoder import IncrementalDecoder
from guardalign_guardrails.decoding.chat.progress import LogitsRecorder, Progress, SequenceState
from guardalign_guardrails.decoding.chat.prompts.template import knows_tools, render
from guardalign_guardrails.decoding.chat.prompts.tokenization import Prompts, to_device, tokenize
from guardalign_guardrails.decoding.chat.settings import GenerationSettings, generation_config
from guardalign_guardrails.decoding.chat.tool_choice import ToolChoice, ToolOffer, Tools, offer_of
from guardalign_guardrails.decoding.chat.tools import ToolFormat, numbered
from guardalign_guardrails.decoding.config import SafetyPrefix
from guardalign_guardrails.errors import ContextOverflow


class ChatOptions(TypedDict, total=False):
    """Keyword arguments of every way to ask; `CalibratedLVLM.chat` explains them."""

    tools: Tools | None
    tool_choice: ToolChoice
    settings: GenerationSettings | None
    is_reported: bool
    logits_processors: Sequence[Any]


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """What a caller asks of the model beside the chat.

    Attributes:
        settings: Of the generation.
        offer: The tools, and the schema of the answer.
        is_reported: Whether shares of attention are measured.
        logits_processors: More of transformers' processors.
    """

    settings: GenerationSettings
    offer: ToolOffer
    is_reported: bool = False
    logits_processors: tuple[Any, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        defaults: GenerationSettings,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        settings: GenerationSettings | None = None,
        *,
        is_reported: bool = False,
        logits_processors: Sequence[Any] = (),
    ) -> GenerationRequest:
        """The request of a call.

        Args:
            defaults: Settings where the call gives none.
            tools: See `CalibratedLVLM.chat`, here and below.
            tool_choice: Which of them.
            settings: Of the generation.
            is_reported: Whether shares of attention are measured.
            logits_processors: More of transformers' processors.

        Raises:
            PromptError: The tool to call is not among the tools.
        """
        used = settings or defaults
        offer = offer_of(tools, tool_choice, used.json_schema)
        return cls(used, offer, is_reported, tuple(logits_processors))


@dataclass(frozen=True)
class StreamCallbacks:
    """Called while the first answer of a generation grows.

    Attributes:
        on_prefill: With the text that the answer begins with, before the first token.
        on_token: After each token.
    """

    on_prefill: Callable[[str], None]
    on_token: Callable[[SequenceState], None]


@dataclass(frozen=True, eq=False)
class Generator:
    """A model with its processor, its prefix and its calibration.

    Attributes:
        model: A transformers model that generates.
        processor: Its processor, or its tokenizer if it reads text only.
        prefix: The safety prefix.
        calibration: Installed for the time of each generation; None for plain decoding.
        tool_format: How the model writes tool calls; None if it does not.
        context_window: Most tokens of prompt and answer together; None for no limit.
        grammars: For answers in JSON.
    """

    model: Any = field(repr=False)
    processor: Any = field(repr=False)
    prefix: SafetyPrefix
    calibration: Any = field(repr=False)
    tool_format: ToolFormat | None
    context_window: int | None
    grammars: Grammars = field(repr=False)

    @property
    def tokenizer(self) -> Any:
        """The processor's, or the processor itself."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def is_multimodal(self) -> bool:
        """Whether it reads images."""
        return self.processor is not self.tokenizer

    @property
    def knows_tools(self) -> bool:
        """Whether its template writes tools and its calls can be parsed."""
        return self.tool_format is not None and knows_tools(self.processor)

    def prefix_for(self, admission: Admission) -> SafetyPrefix | None:
        """The prefix of a chat; None where the policy decides and leaves it out."""
        decision = admission.decision
        is_left_out = self.prefix.when == "policy" and decision is not None and not decision.is_prefix_due
        return None if is_left_out else self.prefix

    def prompts(self, admissions: Sequence[Admission], tools: Tools | None = None) -> tuple[Prompts, int]:
        """Prompts of chats that all have images, or all have none, and how many new tokens there is room for.

        Raises:
            PromptError: A chat cannot be written into a prompt.
            ContextOverflow: One is too long.
        """
        rendered = [
            render(
                self.processor,
                admission.messages,
                self.prefix_for(admission),
                tools,
                takes_images=self.is_multimodal,
            )
            for admission in admissions
        ]
        prompts = tokenize(self.processor, rendered)
        window, longest = self.context_window, prompts.spans.length
        if window is not None and longest >= window:
            raise ContextOverflow(longest, window)
        return prompts, (1 << 31 if window is None else window - longest)

    def batch(
        self, admissions: Sequence[Admission], request: GenerationRequest, cancelled: threading.Event
    ) -> list[Answer]:
        """Answers of chats in order, refused ones among them; chats with images are one generation, others another.

        Args:
            admissions: Chats.
            request: What is asked.
            cancelled: Ends it at the next token once it is set.

        Raises:
            PromptError: A chat cannot be written into a prompt.
            ContextOverflow: One is too long.
        """
        answers = [admission.refusal for admission in admissions]
        groups: dict[bool, list[int]] = {}
        for number, admission in enumerate(admissions):
            if admission.refusal is None:
                groups.setdefault(any(message.images for message in admission.messages), []).append(number)
        for numbers in groups.values():
            own = self.generate([admissions[number] for number in numbers], request, cancelled)
            for number, answer in zip(numbers, own, strict=True):
                answers[number] = answer
        return [answer for answer in answers if answer is not None]

    def stream(
        self,
        admission: Admission,
        request: GenerationRequest,
        cancelled: threading.Event,
        put: Callable[[AnswerChunk], None],
    ) -> None:
        """Put the chunks of an answer as its tokens come; the last one has the whole answer.

        Args:
            admission: A chat.
            request: What is asked.
            cancelled: Ends it at the next token once it is set.
            put: Called with each chunk.

        Raises:
            PromptError: The chat cannot be written into a prompt.
            ContextOverflow: It is too long.
        """
        sent: list[str] = []

        def on_prefill(prefill: str) -> None:
            sent.append(prefill)
            put(AnswerChunk(prefill))

        def on_token(sequence: SequenceState) -> None:
            text, logprobs = sequence.decoder.new_text(), sequence.new_logprobs()
            if text or logprobs:
                sent.append(text)
                put(AnswerChunk(text, logprobs))

        # JSON that may be a call is not shown half written.
        is_held = bool(request.offer.json_calls)
        callbacks = None if is_held else StreamCallbacks(on_prefill, on_token)
        (answer,) = self.generate([admission], request, cancelled, callbacks)
        before = "".join(sent)
        rest = answer.text[len(before) :] if answer.text.startswith(before) else ""
        put(AnswerChunk(rest, (answer.logprobs or ()) if is_held else (), answer=answer))

    def generate(
        self,
        admissions: Sequence[Admission],
        request: GenerationRequest,
        cancelled: threading.Event,
        callbacks: StreamCallbacks | None = None,
    ) -> list[Answer]:
        """Answers of one generation.

        Args:
            admissions: Chats that all have images, or all have none.
            request: What is asked.
            cancelled: Ends it at the next token once it is set.
            callbacks: For a stream of the first answer.

        Raises:
            PromptError: A chat cannot be written into a prompt.
            ContextOverflow: One is too long.
        """
        offer, settings = request.offer, request.settings
        prompts, room = self.prompts(admissions, offer.tools)
        # A prefix at the start of an answer is no part of its JSON.
        prefills = prompts.prefills if offer.schema is None else ("",) * len(prompts.prefills)
        if callbacks is not None and prefills[0]:
            callbacks.on_prefill(prefills[0])
        tool_format = self.tool_format if offer.tools and offer.schema is None else None
        hold = None if tool_format is None else tool_format.opening
        sequences = [
            SequenceState(IncrementalDecoder(self.tokenizer, settings.stop, hold, keep_special=tool_format is not None))
            for _ in admissions
        ]
        logits = None if settings.logprobs is None else (LogitsRecorder(), settings.logprobs)
        progress = Progress(
            sequences,
            ends=self._ends(),
            tokenizer=self.tokenizer,
            cancelled=cancelled,
            on_token=None if callbacks is None else callbacks.on_token,
            logits=logits,
        )
        report = self._run(prompts, request, progress, min(settings.max_new_tokens, room), logits)
        return [
            self._finished(sequence, admission, length, prefill, tool_format, report, request)
            for sequence, admission, length, prefill in zip(
                sequences, admissions, prompts.lengths, prefills, strict=True
            )
        ]

    def _run(
        self,
        prompts: Prompts,
        request: GenerationRequest,
        progress: Progress,
        max_new_tokens: int,
        logits: tuple[LogitsRecorder, int] | None,
    ) -> CalibrationReport | None:
        from transformers import LogitsProcessorList, StoppingCriteriaList

        device = self.model.device
        config = generation_config(
            self.model.generation_config,
            request.settings,
            max_new_tokens=max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        schema = request.offer.schema
        grammar = [] if schema is None else [self.grammars.processor(schema)]
        processors = [*request.logits_processors, *grammar, *([] if logits is None else [logits[0]])]
        report = None
        with contextlib.ExitStack() as during:
            during.enter_context(torch.inference_mode())
            if request.settings.seed is not None:
                devices = [device] if device.type == "cuda" else []
                during.enter_context(torch.random.fork_rng(devices=devices))
                torch.manual_seed(request.settings.seed)
            if self.calibration is not None:
                during.enter_context(self.calibration)
                report = during.enter_context(
                    self.calibration.generation(prompts.spans, is_reported=request.is_reported)
                )
            tokens = self.model.generate(
                **to_device(prompts.inputs, device, self.model.dtype),
                generation_config=config,
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList([progress]),
            )
        if config.num_beams > 1:
            for sequence, ids in zip(progress.sequences, tokens[:, prompts.spans.length :].tolist(), strict=True):
                progress.take(sequence, ids)
        return report

    def _finished(
        self,
        sequence: SequenceState,
        admission: Admission,
        length: int,
        prefill: str,
        tool_format: ToolFormat | None,
        report: CalibrationReport | None,
        request: GenerationRequest,
    ) -> Answer:
        decoder = sequence.decoder
        decoder.finish()
        reason: FinishReason = "stop" if decoder.is_stopped else sequence.reason or "length"
        text, calls = (decoder.text, ()) if tool_format is None else tool_format.parse(decoder.text)
        if (call := request.offer.call_in(text)) is not None:
            text, calls = "", numbered([call])
        return Answer(
            prefill + text,
            "tool_calls" if calls and reason == "stop" else reason,
            Usage(length, sequence.tokens),
            admission.verdicts,
            calls,
            None if request.settings.logprobs is None else tuple(sequence.logprobs),
            report,
        )

    def _ends(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.tokenizer.eos_token_id
        return [] if ends is None else ends if isinstance(ends, list) else [ends]
