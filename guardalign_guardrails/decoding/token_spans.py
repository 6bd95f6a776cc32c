"""Which tokens of a prompt are the safety prefix and which are the instruction, and what that means for one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Range = tuple[int, int]
"""First token and the one after the last, as columns of the padded prompt."""


@dataclass(frozen=True)
class PromptSpans:
    """Spans of one prompt.

    Attributes:
        prefix: The safety prefix; may be empty.
        instruction: The ranges of the user's words, image tokens left out.
    """

    prefix: Range
    instruction: tuple[Range, ...] = ()


@dataclass(frozen=True)
class BatchSpans:
    """Spans of a batch of prompts.

    Attributes:
        prompts: One for each row, in columns of the padded batch.
        length: Columns of the padded batch; what comes later is generated.
    """

    prompts: tuple[PromptSpans, ...]
    length: int

    def shifted(self, by: Sequence[int]) -> BatchSpans:
        """The same spans behind ``by`` columns of padding on the left of each row."""
        moved = tuple(
            PromptSpans(_moved(p.prefix, pad), tuple(_moved(r, pad) for r in p.instruction))
            for p, pad in zip(self.prompts, by, strict=True)
        )
        return BatchSpans(moved, self.length)


@dataclass(frozen=True, eq=False)
class Places:
    """Positions within one forward pass, padded to the longest row of the batch.

    Attributes:
        rows: Query rows to change, counted from the first token of this pass, shape [B, I].
        columns: Prefix columns, counted from the first token of the chat, shape [B, P].
        pairs: Which pairs are meant and see each other, shape [B, I, P]; None for all.
        is_uniform: Whether every row of the batch has the same rows and columns.
    """

    rows: Tensor = field(repr=False)
    columns: Tensor = field(repr=False)
    pairs: Tensor | None = field(repr=False)
    is_uniform: bool


def places(
    spans: BatchSpans, *, past: int, length: int, batch: int, with_generated: bool, device: torch.device
) -> Places | None:
    """What to change in one forward pass; None for nothing.

    Args:
        spans: Of the prompts.
        past: Tokens before this pass, those in the cache.
        length: Tokens in this pass.
        batch: Rows in this pass, a multiple of the prompts when beams or several samples share one.
        with_generated: Whether generated tokens count as queries.
        device: Where the tensors go.

    Raises:
        ValueError: The rows are no multiple of the prompts.
    """
    if batch % len(spans.prompts):
        raise ValueError(f"a pass of {batch} rows cannot belong to {len(spans.prompts)} prompts")
    rows, columns = [], []
    for prompt in spans.prompts:
        asked = [position for first, end in prompt.instruction for position in range(first, end)]
        if with_generated:
            asked += range(max(spans.length, past), past + length)
        rows.append([position - past for position in asked if past <= position < past + length])
        columns.append(list(range(*prompt.prefix)))
    if not any(r and c for r, c in zip(rows, columns, strict=True)):
        return None
    repeats = batch // len(spans.prompts)
    is_uniform = all(r == rows[0] for r in rows) and all(c == columns[0] for c in columns)
    row_index, has_row = _padded(rows, repeats, device)
    column_index, has_column = _padded(columns, repeats, device)
    pairs = (row_index + past).unsqueeze(-1) >= column_index.unsqueeze(-2)
    pairs &= has_row.unsqueeze(-1) & has_column.unsqueeze(-2)
    # A glance at the lists costs less than one at the tensor.
    sees_all = is_uniform and min(rows[0]) + past >= columns[0][-1]
    return Places(row_index, column_index, None if sees_all else pairs, is_uniform)


def _padded(lists: Sequence[list[int]], repeats: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, lists))
    index = torch.tensor([row + [0] * (width - len(row)) for row in lists], dtype=torch.long)
    is_real = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in lists], dtype=torch.bool)
    return (
        index.repeat_interleave(repeats, 0).to(device).reshape(-1, width),
        is_real.repeat_interleave(repeats, 0).to(device).reshape(-1, width),
    )


def _moved(span: Range, by: int) -> Range:
    return span[0] + by, span[1] + by
