"""Follows a generation from token to token: decodes text, finds stop strings, calls back, and ends when cancelled.

It is a stopping criterion, which transformers asks after each token whether to go on; so one generate call serves whole
answers, streams and batches alike.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from guardalign_guardrails.decoding.chat.answer import FinishReason, TokenLogprob
from guardalign_guardrails.decoding.chat.incremental_decoder import IncrementalDecoder


class SequenceState:
    """State of one sequence of a generation."""

    def __init__(self, decoder: IncrementalDecoder) -> None:
        self.decoder = decoder
        self.reason: FinishReason | None = None
        self.tokens = 0
        self.logprobs: list[TokenLogprob] = []
        self._handed_out = 0

    def new_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Log-probabilities that were not handed out yet."""
        new, self._handed_out = tuple(self.logprobs[self._handed_out :]), len(self.logprobs)
        return new


class LogitsRecorder(LogitsProcessor):  # type: ignore[misc]
    """Keeps the logits that the next token is drawn from; changes nothing."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Keep logits, which have no temperature and nucleus yet."""
        self.last = scores
        return scores


class Progress(StoppingCriteria):  # type: ignore[misc]
    """Follows the sequences of one generation, one token at a time.

    Args:
        sequences: One for each row of the batch.
        ends: Tokens that end an answer.
        tokenizer: Decodes tokens for log-probabilities.
        cancelled: Set when the caller cancelled.
        on_token: Called after each token of the first sequence; for streams.
        logits: Recorder of logits, and how many of the likeliest tokens to report; None for no log-probabilities.
    """

    def __init__(
        self,
        sequences: Sequence[SequenceState],
        *,
        ends: Sequence[int],
        tokenizer: Any,
        cancelled: threading.Event,
        on_token: Callable[[SequenceState], None] | None = None,
        logits: tuple[LogitsRecorder, int] | None = None,
    ) -> None:
        self.sequences = sequences
        self._ends = frozenset(ends)
        self._tokenizer = tokenizer
        self._cancelled = cancelled
        self._on_token = on_token
        self._logits = logits

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which sequences are done, shape [B]."""
        if input_ids.shape[0] == len(self.sequences):
            logprobs = self._logprobs(input_ids[:, -1])
            for number, (sequence, token) in enumerate(zip(self.sequences, input_ids[:, -1].tolist(), strict=True)):
                if sequence.reason is None:
                    self._step(sequence, token, None if logprobs is None else logprobs[number])
        is_cancelled = self._cancelled.is_set()
        if is_cancelled:
            for sequence in self.sequences:
                sequence.reason = sequence.reason or "cancelled"
        done = [sequence.reason is not None for sequence in self.sequences]
        if input_ids.shape[0] != len(self.sequences):
            done = [is_cancelled] * input_ids.shape[0]
        return torch.tensor(done, device=input_ids.device)

    def take(self, sequence: SequenceState, tokens: Sequence[int]) -> None:
        """Follow a whole sequence at once, as beam search gives it."""
        for token in tokens:
            if sequence.reason is None:
                self._step(sequence, token, None)

    def _step(self, sequence: SequenceState, token: int, logprob: TokenLogprob | None) -> None:
        sequence.tokens += 1
        if logprob is not None:
            sequence.logprobs.append(logprob)
        if token in self._ends:
            sequence.reason = "stop"
        else:
            sequence.decoder.add(token)
            if sequence.decoder.is_stopped:
                sequence.reason = "stop"
        if self._on_token is not None and sequence is self.sequences[0]:
            self._on_token(sequence)

    def _logprobs(self, tokens: Tensor) -> list[TokenLogprob] | None:
        if self._logits is None or self._logits[0].last is None:
            return None
        scores, count = torch.log_softmax(self._logits[0].last.float(), -1), self._logits[1]
        own = scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist()
        values, ids = scores.topk(min(count, scores.shape[-1]), dim=-1)
        return [
            TokenLogprob(
                self._tokenizer.decode([token]),
                value,
                tuple((self._tokenizer.decode([i]), v) for i, v in zip(near, likely, strict=True)),
            )
            for token, value, near, likely in zip(tokens.tolist(), own, ids.tolist(), values.tolist(), strict=True)
        ]
