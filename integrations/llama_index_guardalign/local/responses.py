"""A local model's answer, whole or as far as it has come, as LlamaIndex's responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
)

from guardalign_guardrails.decoding.attention.correction import CalibrationReport
from guardalign_guardrails.decoding.chat.answer import Answer, Piece, TokenLogprob
from llama_index_guardalign.local.call_options import Order
from llama_index_guardalign.local.tools import blocks_of


@dataclass(frozen=True)
class Step:
    """How far an answer has come.

    Attributes:
        text: All of it so far.
        delta: What is new; None if it did not come in pieces.
        logprobs: Of the tokens that are new.
        answer: The whole answer, at its end only.
    """

    text: str = field(repr=False)
    delta: str | None = field(default=None, repr=False)
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    answer: Answer | None = None

    @classmethod
    def whole(cls, answer: Answer) -> Step:
        """An answer that came at once."""
        return cls(answer.text, logprobs=answer.logprobs or (), answer=answer)


class Growth:
    """An answer as its pieces come.

    Args:
        order: What was asked for.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._text = ""

    def step(self, piece: Piece) -> Step | None:
        """How far it has come with one more piece; None if there is nothing to show yet.

        Raises:
            UnsafeContentError: It is a refusal where JSON of a schema was asked for.
        """
        if piece.answer is not None:
            answer = self._order.finished(piece.answer)
            return Step(answer.text, piece.text, piece.logprobs, answer)
        self._text += piece.text
        is_empty = not piece.text and not piece.logprobs
        return None if is_empty else Step(self._text, piece.text, piece.logprobs)


def chat_response(step: Step, model: str) -> ChatResponse:
    """A step as a chat response; ``raw`` and token counts are in the last one."""
    blocks: list[ContentBlock] = [TextBlock(text=step.text)]
    if step.answer is not None and step.answer.tool_calls:
        # An empty block beside calls is refused by some hosted models, should they be given this chat.
        blocks = [block for block in blocks if step.text] + list(blocks_of(step.answer.tool_calls))
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks),
        delta=step.delta,
        raw=_raw(step, model),
        logprobs=_logprobs(step.logprobs),
        additional_kwargs=_usage(step),
    )


def completion_response(step: Step, model: str) -> CompletionResponse:
    """A step as a completion response; ``raw`` and token counts are in the last one."""
    return CompletionResponse(
        text=step.text,
        delta=step.delta,
        raw=_raw(step, model),
        logprobs=_logprobs(step.logprobs),
        additional_kwargs=_usage(step),
    )


def _raw(step: Step, model: str) -> dict[str, Any] | None:
    answer = step.answer
    if answer is None:
        return None
    return {
        "model": model,
        "finish_reason": answer.finish_reason,
        "usage": _usage(step),
        "verdicts": [verdict.summary() for verdict in answer.verdicts],
        "calibration": None if answer.calibration is None else _reported(answer.calibration),
    }


def _usage(step: Step) -> dict[str, int]:
    if step.answer is None:
        return {}
    usage = step.answer.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _reported(report: CalibrationReport) -> dict[str, Any]:
    """What calibration did in the one prompt there was, by layer."""

    def only(by_layer: Mapping[int, Sequence[float]]) -> dict[int, float]:
        return {layer: values[0] for layer, values in by_layer.items()}

    return {
        "layers": list(report.layers),
        "gamma": only(report.gamma),
        "before": only(report.before),
        "after": only(report.after),
    }


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[list[LogProb]] | None:
    """For each token first itself, then the likeliest ones if they were asked for."""
    if not tokens:
        return None
    return [[_logprob(one.token, one.logprob), *(_logprob(*pair) for pair in one.top)] for one in tokens]


def _logprob(token: str, value: float) -> LogProb:
    return LogProb(token=token, logprob=value, bytes=list(token.encode()))
