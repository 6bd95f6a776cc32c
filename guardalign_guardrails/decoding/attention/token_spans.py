"""Token spans of the safety prefix and the instruction, and the query and key positions they are in a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from guardalign_guardrails.decoding.attention.positions import Positions

Range = tuple[int, int]
"""First token and the one after the last, as columns of the padded prompt."""


@dataclass(frozen=True)
class PromptSpans:
    """Spans of one prompt.

    Attributes:
        prefix: The safety prefix; may be empty.
        instruction: The ranges of the user's text, image tokens left out.
    """

    prefix: Range
    instruction: tuple[Range, ...] = ()


@dataclass(frozen=True)
class BatchSpans:
    """Spans of a batch of prompts.

    Attributes:
        prompts: One for each row, in columns of the padded batch.
        length: Columns of the padded batch; later ones are generated tokens.
    """

    prompts: tuple[PromptSpans, ...]
    length: int

    @cached_property
    def columns(self) -> tuple[Positions, Tensor | None]:
        """Prefix columns of each prompt, and which of them are no padding; None for all."""
        # Cached for passes that need gradients, even if the first one does not.
        with torch.inference_mode(mode=False):
            return _padded([range(*prompt.prefix) for prompt in self.prompts])

    def shifted(self, by: Sequence[int]) -> BatchSpans:
        """The spans moved right by the ``by`` columns of padding of each row."""
        moved = tuple(
            PromptSpans(_moved(p.prefix, pad), tuple(_moved(r, pad) for r in p.instruction))
            for p, pad in zip(self.prompts, by, strict=True)
        )
        return BatchSpans(moved, self.length)


@dataclass(frozen=True, eq=False)
class PassPositions:
    """Positions to calibrate in one forward pass, padded to the longest row of the batch.

    Attributes:
        rows: Query rows to change, counted from the first token of this pass, I for each row of the batch.
        columns: Prefix columns, counted from the first token of the chat, P for each row of the batch.
        pairs: Pairs of rows and columns that are no padding and see each other, shape [B, I, P]; None for all.
        distance: Tokens between the last query and the first prefix column; what a sliding window must exceed.
    """

    rows: Positions = field(repr=False)
    columns: Positions = field(repr=False)
    pairs: Tensor | None = field(repr=False)
    distance: int


def positions_in_pass(
    spans: BatchSpans, *, past: int, length: int, batch: int, with_generated: bool, device: torch.device
) -> PassPositions | None:
    """Positions to calibrate in one forward pass; None where there are none.

    Args:
        spans: Of the prompts.
        past: Tokens before this pass, which are in the cache.
        length: Tokens in this pass.
        batch: Rows in this pass, a multiple of the prompts when beams or several samples share one.
        with_generated: Whether generated tokens count as queries.
        device: Where the tensors go.

    Raises:
        ValueError: The rows are no multiple of the prompts.
    """
    if batch % len(spans.prompts):
        raise ValueError(f"a pass of {batch} rows cannot belong to {len(spans.prompts)} prompts")
    rows = []
    for prompt in spans.prompts:
        asked = [*prompt.instruction, (spans.length, past + length)] if with_generated else prompt.instruction
        rows.append([at for a, b in asked for at in range(max(a - past, 0), min(b - past, length))])
    ends = [(max(r) + past, p.prefix[0]) for r, p in zip(rows, spans.prompts, strict=True) if r and _is_there(p.prefix)]
    if not ends:
        return None
    row_positions, is_row = _padded(rows)
    column_positions, is_column = spans.columns
    pairs = None
    # Looking at the lists costs less than looking at the tensors, and they are uniform as a rule.
    is_uniform = is_row is None and is_column is None
    if not is_uniform or min(map(min, rows)) + past < max(prompt.prefix[1] - 1 for prompt in spans.prompts):
        pairs = (row_positions.at + past).unsqueeze(-1) >= column_positions.at.unsqueeze(-2)
        if is_row is not None:
            pairs &= is_row.unsqueeze(-1)
        if is_column is not None:
            pairs &= is_column.unsqueeze(-2)
        pairs = pairs.repeat_interleave(batch // len(rows), 0).to(device)
    if past + length < max(prompt.prefix[1] for prompt in spans.prompts):
        # A prompt that is read in chunks has no keys yet for later columns; no pair has one of them.
        column_positions = Positions(column_positions.at.clamp_max(past + length - 1), column_positions.is_uniform)
    return PassPositions(
        row_positions.repeated(batch // len(rows)).on(device),
        column_positions.repeated(batch // len(rows)).on(device),
        pairs,
        max(last - first for last, first in ends),
    )


def _padded(lists: Sequence[Sequence[int]]) -> tuple[Positions, Tensor | None]:
    """Lists of positions, padded with position 0, and which positions are no padding; None for all."""
    first, width = lists[0], max(map(len, lists))
    at = torch.tensor([[*positions, *[0] * (width - len(positions))] for positions in lists], dtype=torch.long)
    is_uniform = all(positions == first for positions in lists)
    is_run = is_uniform and width > 0 and all(a + 1 == b for a, b in pairwise(first))
    padded = Positions(at, is_uniform, (first[0], first[-1] + 1) if is_run else None)
    if all(len(positions) == width for positions in lists):
        return padded, None
    return padded, torch.arange(width) < torch.tensor([len(positions) for positions in lists]).unsqueeze(1)


def _is_there(span: Range) -> bool:
    return span[0] < span[1]


def _moved(span: Range, by: int) -> Range:
    return span[0] + by, span[1] + by
