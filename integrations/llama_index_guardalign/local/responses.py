"""A local model's answer, whole or as far as it has come, as LlamaIndex's responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)

from guardalign_guardrails.content.chat import first_violation
from guardalign_guardrails.decoding.attention.correction import CalibrationReport
from guardalign_guardrails.decoding.chat.answer import Answer, AnswerChunk, TokenLogprob
from guardalign_guardrails.decoding.chat.tool_choice import offer_of
from guardalign_guardrails.errors import UnsafeContentError


@dataclass(frozen=True)
class PartialAnswer:
    """An answer as far as it has come.

    Attributes:
        text: All of it so far.
        delta: The new text; None if the answer is no stream.
        logprobs: Of the new tokens.
        answer: The whole answer, at its end only.
    """

    text: str = field(default="", repr=False)
    delta: str | None = field(default=None, repr=False)
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    answer: Answer | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it has nothing new to show."""
        return self.answer is None and not self.delta and not self.logprobs

    def with_chunk(self, chunk: AnswerChunk, arguments: Mapping[str, Any]) -> PartialAnswer:
        """The answer with one more chunk of a stream; for errors see `checked`."""
        if chunk.answer is None:
            return PartialAnswer(self.text + chunk.text, chunk.text, chunk.logprobs)
        answer = checked(chunk.answer, arguments)
        return PartialAnswer(answer.text, chunk.text, chunk.logprobs, answer)


def checked(answer: Answer, arguments: Mapping[str, Any]) -> Answer:
    """An answer, unless the caller could only misread it.

    Args:
        answer: The core's.
        arguments: What the core was called with.

    Raises:
        UnsafeContentError: It is a refusal where JSON of a schema was asked for.
    """
    violation = first_violation(answer.verdicts)
    if answer.finish_reason == "refusal" and violation is not None:
        offer = offer_of(arguments["tools"], arguments["tool_choice"], arguments["settings"].json_schema)
        if offer.schema is not None:
            raise UnsafeContentError(violation)
    return answer


def chat_response(part: PartialAnswer, model: str) -> ChatResponse:
    """A chat response; ``raw`` and token counts are in the last one of a stream."""
    blocks: list[ContentBlock] = [TextBlock(text=part.text)]
    if part.answer is not None and part.answer.tool_calls:
        # An empty block beside calls is refused by some hosted models, should they be given this chat.
        blocks = [block for block in blocks if part.text]
        blocks += [
            ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments))
            for call in part.answer.tool_calls
        ]
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks), **_fields(part, model))


def completion_response(part: PartialAnswer, model: str) -> CompletionResponse:
    """A completion response; ``raw`` and token counts are in the last one of a stream."""
    return CompletionResponse(text=part.text, **_fields(part, model))


def _fields(part: PartialAnswer, model: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"delta": part.delta, "logprobs": _logprobs(part.logprobs)}
    answer = part.answer
    if answer is None:
        return fields
    usage = {**asdict(answer.usage), "total_tokens": answer.usage.total_tokens}
    raw = {
        "model": model,
        "finish_reason": answer.finish_reason,
        "usage": usage,
        "verdicts": [verdict.summary() for verdict in answer.verdicts],
        "calibration": None if answer.calibration is None else _reported(answer.calibration),
    }
    return {**fields, "raw": raw, "additional_kwargs": dict(usage)}


def _reported(report: CalibrationReport) -> dict[str, Any]:
    """What calibration did in the only prompt, by layer."""
    measured = {"gamma": report.gamma, "before": report.before, "after": report.after}
    only = {name: {layer: values[0] for layer, values in layers.items()} for name, layers in measured.items()}
    return {"layers": list(report.layers), **only}


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[list[LogProb]] | None:
    """For each token first itself, then the likeliest ones if they were asked for."""
    if not tokens:
        return None
    return [[_logprob(one.token, one.logprob), *(_logprob(*pair) for pair in one.top)] for one in tokens]


def _logprob(token: str, value: float) -> LogProb:
    return LogProb(token=token, logprob=value, bytes=list(token.encode()))
