"""What a local model answers, whole or piece by piece. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from guardalign_guardrails.decoding.attention.calibration import CalibrationReport
from guardalign_guardrails.decoding.chat.messages import ToolCall
from guardalign_guardrails.verdict import Verdict

FinishReason = Literal["stop", "length", "tool_calls", "refusal", "cancelled"]
"""``stop``: the model ended or a stop string came; ``length``: it ran out of tokens; ``refusal``: the policy's refusal,
no model was asked; ``cancelled``: nobody wanted the rest."""


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
        top: The likeliest tokens with theirs, likeliest first; as many as asked for.
    """

    token: str = field(repr=False)
    logprob: float
    top: tuple[tuple[str, float], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Answer:
    """A model's answer to a chat, or the guard's.

    Attributes:
        text: The words; they begin with the safety prefix if that stands at the start of answers.
        finish_reason: Why it ends.
        usage: Tokens.
        verdicts: What the guard found in the chat's images, in reading order.
        tool_calls: Tools that the model wants run.
        logprobs: Of each generated token; None if not asked for.
        calibration: What calibration did; None without calibration. With shares of attention if a report was asked
            for; a batch shares one.
    """

    text: str = field(repr=False)
    finish_reason: FinishReason
    usage: Usage = Usage()
    verdicts: tuple[Verdict, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)
    calibration: CalibrationReport | None = None


@dataclass(frozen=True)
class Piece:
    """A part of an answer, as it comes.

    Attributes:
        text: New words; may be empty.
        logprobs: Of the tokens that came since the last piece.
        answer: The whole answer, with the last piece only.
        verdicts: What the guard found in the chat's images, with the first piece only; it comes before any word.
    """

    text: str = field(repr=False)
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    answer: Answer | None = None
    verdicts: tuple[Verdict, ...] = ()
