"""Decodes the tokens of one answer into text as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class IncrementalDecoder:
    """The text of one answer; text that was handed out is never taken back.

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
        """Decode one more token."""
        self._ids.append(token)
        self._grow(self._stream.step(self._tokenizer.backend_tokenizer, token) or "")

    def finish(self) -> None:
        """Decode what is left at the end, which may be half a character."""
        if self.is_stopped:
            return
        whole = self._tokenizer.decode(
            self._ids, skip_special_tokens=not self._keep_special, clean_up_tokenization_spaces=False
        )
        if whole.startswith(self.text):
            self._grow(whole[len(self.text) :])

    def new_text(self, *, is_last: bool = False) -> str:
        """Text that can be handed out and was not yet."""
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
        """Length of the text in which no stop string and no tool call can begin."""
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
