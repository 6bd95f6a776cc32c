"""What happens between two tokens: text grows, stop strings are looked for, pieces are handed on, a cancel is heard.

It is a stopping criterion, since that is where transformers asks after each token whether to go on; so one generate
call serves whole answers, streams and batches alike.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from guardalign_guardrails.decoding.chat.answer import FinishReason, TokenLogprob


class Words:
    """The text of one answer as its tokens come; what was handed out is never taken back.

    Args:
        tokenizer: A fast tokenizer.
        stop: Texts that end the answer.
        hold: A text from which on nothing is handed out before the end; None for none.
        keep_special: Whether special tokens are part of the text, since tool calls may be written with them.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], hold: str | None, *, keep_special: bool) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._hold = hold
        self._keep_special = keep_special
        self._stream = DecodeStream(skip_special_tokens=not keep_special)
        self._ids: list[int] = []
        self._sent = 0
        self.text = ""
        self.is_stopped = False

    def add(self, token: int) -> None:
        """Take one more token."""
        self._ids.append(token)
        self._grow(self._stream.step(self._tokenizer.backend_tokenizer, token) or "")

    def finish(self) -> None:
        """No more tokens come: what may be half a character is a character now."""
        if self.is_stopped:
            return
        whole = self._tokenizer.decode(
            self._ids, skip_special_tokens=not self._keep_special, clean_up_tokenization_spaces=False
        )
        if whole.startswith(self.text):
            self._grow(whole[len(self.text) :])

    def piece(self, *, is_last: bool = False) -> str:
        """What can be handed out that was not yet."""
        end = len(self.text) if is_last else self._safe()
        new = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        return new

    def _grow(self, new: str) -> None:
        if not new:
            return
        # A stop string may have begun in the text before.
        begin = max(0, len(self.text) - max(map(len, self._stop), default=1) + 1)
        self.text += new
        hits = [at for stop in self._stop if (at := self.text.find(stop, begin)) >= 0]
        if hits:
            self.text, self.is_stopped = self.text[: min(hits)], True

    def _safe(self) -> int:
        """How far the text goes that no stop string or tool call can begin in."""
        if self.is_stopped:
            return len(self.text)
        end = len(self.text)
        if self._hold is not None and (at := self.text.find(self._hold)) >= 0:
            return max(at, self._sent)
        for mark in (*self._stop, *([self._hold] if self._hold else [])):
            longest = next(
                (n for n in range(min(len(mark), len(self.text) + 1) - 1, 0, -1) if self.text.endswith(mark[:n])), 0
            )
            end = min(end, len(self.text) - longest)
        return max(end, self._sent)


class Row:
    """One answer under way."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self.reason: FinishReason | None = None
        self.tokens = 0
        self.logprobs: list[TokenLogprob] = []
        self._told = 0

    def new_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those that were not asked for yet."""
        new, self._told = tuple(self.logprobs[self._told :]), len(self.logprobs)
        return new


class Logits(LogitsProcessor):  # type: ignore[misc]
    """Remembers what the next token is drawn from; changes nothing."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Part of transformers' list of processors, before temperature and nucleus."""
        self.last = scores
        return scores


class Progress(StoppingCriteria):  # type: ignore[misc]
    """Follows the rows of one generation, one token at a time.

    Args:
        rows: One for each row of the batch.
        width: Columns of the padded prompt.
        ends: Tokens that end an answer.
        tokenizer: Writes tokens for logprobs.
        cancelled: Set when nobody wants the rest.
        on_token: Called after each token of the first row; for streams.
        logits: Where logits are remembered, and how many of the likeliest tokens to tell; None for no logprobs.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        width: int,
        ends: Sequence[int],
        tokenizer: Any,
        cancelled: threading.Event,
        on_token: Callable[[Row], None] | None = None,
        logits: tuple[Logits, int] | None = None,
    ) -> None:
        self.rows = rows
        self._width = width
        self._ends = frozenset(ends)
        self._tokenizer = tokenizer
        self._cancelled = cancelled
        self._on_token = on_token
        self._logits = logits

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which rows are done, shape [B]."""
        if input_ids.shape[0] == len(self.rows):
            logprobs = self._logprobs(input_ids[:, -1])
            for number, (row, token) in enumerate(zip(self.rows, input_ids[:, -1].tolist(), strict=True)):
                if row.reason is None:
                    self._step(row, token, None if logprobs is None else logprobs[number])
        is_cancelled = self._cancelled.is_set()
        if is_cancelled:
            for row in self.rows:
                row.reason = row.reason or "cancelled"
        done = [row.reason is not None for row in self.rows]
        if input_ids.shape[0] != len(self.rows):
            done = [is_cancelled] * input_ids.shape[0]
        return torch.tensor(done, device=input_ids.device)

    def take(self, row: Row, tokens: Sequence[int]) -> None:
        """A whole answer at once, as beam search gives it."""
        for token in tokens:
            if row.reason is None:
                self._step(row, token, None)

    def _step(self, row: Row, token: int, logprob: TokenLogprob | None) -> None:
        row.tokens += 1
        if logprob is not None:
            row.logprobs.append(logprob)
        if token in self._ends:
            row.reason = "stop"
        else:
            row.words.add(token)
            if row.words.is_stopped:
                row.reason = "stop"
        if self._on_token is not None and row is self.rows[0]:
            self._on_token(row)

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
