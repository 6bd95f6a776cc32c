"""One generation: admitted chats to answers, by one prompt batch and one generate call.

Runs in the thread that has the model for itself; who waits for it, and for what of it, is not known here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from guardalign_guardrails.decoding.attention.calibration import CalibrationReport
from guardalign_guardrails.decoding.chat.admission import Admission
from guardalign_guardrails.decoding.chat.answer import Answer, FinishReason, Usage
from guardalign_guardrails.decoding.chat.grammar import Grammars
from guardalign_guardrails.decoding.chat.progress import Logits, Progress, Row, Words
from guardalign_guardrails.decoding.chat.prompts import Prompts, to_device, tokenize
from guardalign_guardrails.decoding.chat.settings import GenerationSettings, generation_config
from guardalign_guardrails.decoding.chat.template import render
from guardalign_guardrails.decoding.chat.tool_choice import ToolOffer, Tools
from guardalign_guardrails.decoding.chat.tools import ToolFormat, numbered
from guardalign_guardrails.decoding.config import SafetyPrefix
from guardalign_guardrails.errors import ContextOverflow


@dataclass(frozen=True, eq=False)
class Order:
    """What is asked of the model.

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


@dataclass(frozen=True, eq=False)
class Engine:
    """A model with what writes its prompts and holds its attention.

    Attributes:
        model: A transformers model that generates.
        processor: Its processor, or its tokenizer if it reads words only.
        prefix: The safety prefix.
        calibration: Installed for the time of each generation; None for plain decoding.
        tool_format: How the model writes tool calls; None if it does not.
        context_window: Most tokens of prompt and answer together; None for no limit.
        grammars: For answers that are to be JSON.
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
        """Whether it can be given images."""
        return self.processor is not self.tokenizer

    def prefix_for(self, admission: Admission) -> SafetyPrefix | None:
        """The prefix that a chat is given, by the policy's word if that counts."""
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

    def answers(
        self,
        admissions: Sequence[Admission],
        order: Order,
        cancelled: threading.Event,
        on_token: Callable[[Row], None] | None = None,
        on_head: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """One generation.

        Args:
            admissions: Chats that all have images, or all have none.
            order: What is asked.
            cancelled: Ends it at the next token once it is set.
            on_token: Called after each token of the first answer.
            on_head: Called with the words that the first answer begins with, before the first token.

        Raises:
            PromptError: A chat cannot be written into a prompt.
            ContextOverflow: One is too long.
        """
        offer, settings = order.offer, order.settings
        prompts, room = self.prompts(admissions, offer.tools)
        # What stands at the start of answers is no part of their JSON.
        heads = prompts.heads if offer.schema is None else ("",) * len(prompts.heads)
        if on_head is not None and heads[0]:
            on_head(heads[0])
        tool_format = self.tool_format if offer.tools and offer.schema is None else None
        hold = None if tool_format is None else tool_format.opening
        rows = [
            Row(Words(self.tokenizer, settings.stop, hold, keep_special=tool_format is not None)) for _ in admissions
        ]
        logits = None if settings.logprobs is None else (Logits(), settings.logprobs)
        progress = Progress(
            rows,
            width=prompts.spans.length,
            ends=self._ends(),
            tokenizer=self.tokenizer,
            cancelled=cancelled,
            on_token=on_token,
            logits=logits,
        )
        report = self._generate(prompts, order, progress, min(settings.max_new_tokens, room), logits)
        return [
            self._finished(row, admission, length, head, tool_format, report, order)
            for row, admission, length, head in zip(rows, admissions, prompts.lengths, heads, strict=True)
        ]

    def _generate(
        self,
        prompts: Prompts,
        order: Order,
        progress: Progress,
        max_new_tokens: int,
        logits: tuple[Logits, int] | None,
    ) -> CalibrationReport | None:
        from transformers import LogitsProcessorList, StoppingCriteriaList

        device = self.model.device
        config = generation_config(
            self.model.generation_config,
            order.settings,
            max_new_tokens=max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        schema = order.offer.schema
        grammar = [] if schema is None else [self.grammars.processor(schema)]
        processors = [*order.logits_processors, *grammar, *([] if logits is None else [logits[0]])]
        report = None
        with contextlib.ExitStack() as during:
            during.enter_context(torch.inference_mode())
            if order.settings.seed is not None:
                devices = [device] if device.type == "cuda" else []
                during.enter_context(torch.random.fork_rng(devices=devices))
                torch.manual_seed(order.settings.seed)
            if self.calibration is not None:
                during.enter_context(self.calibration)
                report = during.enter_context(self.calibration.generation(prompts.spans, is_reported=order.is_reported))
            tokens = self.model.generate(
                **to_device(prompts.inputs, device, self.model.dtype),
                generation_config=config,
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList([progress]),
            )
        if config.num_beams > 1:
            for row, ids in zip(progress.rows, tokens[:, prompts.spans.length :].tolist(), strict=True):
                progress.take(row, ids)
        return report

    def _finished(
        self,
        row: Row,
        admission: Admission,
        length: int,
        head: str,
        tool_format: ToolFormat | None,
        report: CalibrationReport | None,
        order: Order,
    ) -> Answer:
        row.words.finish()
        reason: FinishReason = "stop" if row.words.is_stopped else row.reason or "length"
        text, calls = (row.words.text, ()) if tool_format is None else tool_format.parse(row.words.text)
        if (call := order.offer.call_in(text)) is not None:
            text, calls = "", numbered([call])
        return Answer(
            head + text,
            "tool_calls" if calls and reason == "stop" else reason,
            Usage(length, row.tokens),
            admission.verdicts,
            calls,
            None if order.settings.logprobs is None else tuple(row.logprobs),
            report,
        )

    def _ends(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.tokenizer.eos_token_id
        return [] if ends is None else ends if isinstance(ends, list) else [ends]
