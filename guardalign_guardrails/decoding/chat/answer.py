"""Answers of a local model, whole or in chunks. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from guardalign_guardrails.decoding.attention.calibration import CalibrationReport
from guardalign_guardrails.decoding.chat.messages import ToolCall
from guardalign_guardrails.verdict import Verdict

FinishReason = Literal["stop", "length", "tool_calls", "refusal", "cancelled"]
"""``stop``: the model ended, or a stop string came; ``length``: it ran out of tokens; ``tool_calls``: it ended with
calls; ``refusal``: the policy's refusal, no model was asked; ``cancelled``: the caller cancelled."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer.

    Attributes:
        prompt_tokens: Of the prompt, image tokens included.
        completion_tokens: Generated, the end token included.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token.

    Attributes:
        token: Its text.
        logprob: Natural logarithm of its probability, before temperature and nucleus.
        top: The likeliest tokens with their log-probabilities, likeliest first; as many as asked for.
    """

    token: str = field(repr=False)
    logprob: float
    top: tuple[tuple[str, float], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Answer:
    """A model's answer to a chat, or the guard's.

    Attributes:
        text: The text; it begins with the safety prefix if that stands at the start of answers, unless it is JSON.
        finish_reason: Why it ends.
        usage: Tokens.
        verdicts: The guard's verdicts of the chat's images, in reading order.
        tool_calls: Tool calls that the model makes.
        logprobs: Of each generated token; None if not asked for.
        calibration: Report of calibration; None without calibration. It has shares of attention if they were asked
            for; the answers of one generation share it.
    """

    text: str = field(repr=False)
    finish_reason: FinishReason
    usage: Usage = Usage()
    verdicts: tuple[Verdict, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)
    calibration: CalibrationReport | None = None


@dataclass(frozen=True)
class AnswerChunk:
    """A part of an answer in a stream.

    Attributes:
        text: New text; may be empty.
        logprobs: Of the tokens since the last chunk.
        answer: The whole answer, in the last chunk only.
        verdicts: The guard's verdicts of the chat's images, in the first chunk only, which comes before any text.
    """

    text: str = field(repr=False)
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    answer: Answer | None = None
    verdicts: tuple[Verdict, ...] = ()
