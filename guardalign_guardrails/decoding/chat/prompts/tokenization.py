"""Tokenizes rendered prompts, and finds the token columns of prefix and instruction.

Characters become columns by the tokenizer's own offsets, moved by what the processor reports of expanded placeholders.
The text of the prefix's columns is compared with the prefix before anything is generated.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from guardalign_guardrails.decoding.attention.token_spans import BatchSpans, PromptSpans, Range
from guardalign_guardrails.decoding.chat.prompts.template import RenderedPrompt
from guardalign_guardrails.decoding.chat.prompts.template_messages import control_tokens
from guardalign_guardrails.errors import PromptError


@dataclass(frozen=True, eq=False)
class Prompts:
    """A batch of prompts as a model takes it.

    Attributes:
        inputs: Tensors by the names of the model's parameters; rows are padded on the left.
        spans: Prefix and instruction of each row, in columns of the padded batch.
        lengths: Tokens of each prompt, image tokens included, padding not.
        prefills: Text that each answer begins with.
    """

    inputs: Mapping[str, Any] = field(repr=False)
    spans: BatchSpans
    lengths: tuple[int, ...]
    prefills: tuple[str, ...] = ()


def tokenize(processor: Any, rendered: Sequence[RenderedPrompt]) -> Prompts:
    """Tokenize rendered prompts into one batch.

    Args:
        processor: The model's processor; a tokenizer for models that read text only.
        rendered: Prompts that all have images, or all have none.

    Raises:
        PromptError: The processor cannot take the images, or the prefix cannot be found among the tokens.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    texts = [one.text for one in rendered]
    images = [list(one.images) for one in rendered]
    found = _processed(processor, tokenizer, texts, images)
    mask = found["attention_mask"]
    offsets = found.pop("offset_mapping", None)
    replaced = found.pop("text_replacement_offsets", None) or [[] for _ in rendered]
    if offsets is None:
        raise PromptError("The tokenizer has no character offsets; a fast tokenizer is needed.")
    _check_images(processor, texts, images, replaced)
    width = int(mask.shape[1])
    controls = _control_ids(processor, tokenizer)
    spans = []
    for row, one in enumerate(rendered):
        ids, lead = found["input_ids"][row], int(mask[row].argmax())
        columns = _Columns(offsets[row], replaced[row])
        prefix = (0, 0)
        if one.prefix:
            prefix = columns.of(one.prefix)
            _check_prefix(tokenizer, ids, prefix, one.text[slice(*one.prefix)])
            # Attention that no other token draws goes to the very first token.
            prefix = (max(prefix[0], lead + 1), prefix[1])
        asked = tuple(span for span in map(columns.of, one.instruction) if span[0] < span[1])
        if any(not controls.isdisjoint(ids[slice(*span)].tolist()) for span in (prefix, *asked)):
            raise PromptError("The tokenizer reads text of the chat as control tokens, and they cannot be told apart.")
        spans.append(PromptSpans(prefix, asked))
    lengths = tuple(int(count) for count in mask.sum(1))
    return Prompts(found, BatchSpans(tuple(spans), width), lengths, tuple(one.prefill for one in rendered))


class _Columns:
    """From characters of a prompt to columns of its tokens."""

    def __init__(self, offsets: Tensor, replaced: Sequence[Mapping[str, Any]]) -> None:
        self._first, self._end = offsets[:, 0], offsets[:, 1]
        self._gains = [(int(one["span"][1]), int(one["new_span"][1]) - int(one["span"][1])) for one in replaced]

    def of(self, characters: tuple[int, int]) -> Range:
        first, end = (place + self._gained(place) for place in characters)
        # Padding and added special tokens are empty, and are in no range.
        is_in = (self._first < end) & (self._end > first) & (self._end > self._first)
        columns = is_in.nonzero().flatten()
        return (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)

    def _gained(self, place: int) -> int:
        return next((gain for behind, gain in reversed(self._gains) if place >= behind), 0)


def _processed(processor: Any, tokenizer: Any, texts: list[str], images: list[list[Any]]) -> dict[str, Any]:
    bos = getattr(tokenizer, "bos_token", None)
    is_processor = processor is not tokenizer
    settings: dict[str, Any] = {
        "padding": True,
        "padding_side": "left",
        "return_tensors": "pt",
        "return_offsets_mapping": True,
        # Chat templates of tokenizers write all tokens; some of processors rely on the first one being added.
        "add_special_tokens": is_processor and not (bos is not None and texts[0].startswith(bos)),
    }
    if any(images):
        settings |= {"images": images, "return_text_replacement_offsets": True}
    try:
        return dict(processor(text=texts, **settings))
    except Exception as error:  # noqa: BLE001  a processor can raise anything, and its text may quote the chat
        kind = type(error).__name__
    raise PromptError(
        f"{type(processor).__name__} cannot take this chat ({kind}). It needs transformers 5.10 or newer, a fast "
        "tokenizer, and images of a size it can cut up."
    )


def _check_images(
    processor: Any, texts: Sequence[str], images: Sequence[Sequence[Any]], replaced: Sequence[Sequence[Any]]
) -> None:
    """Check that every image has its placeholder; a template may leave one out."""
    token = getattr(processor, "image_token", None)
    for text, own, done in zip(texts, images, replaced, strict=True):
        count = sum(one.get("type", "image") == "image" for one in done) or (text.count(token) if token else len(own))
        if count != len(own):
            raise PromptError(f"The chat has {len(own)} images and its prompt has placeholders for {count}.")


def _control_ids(processor: Any, tokenizer: Any) -> set[int]:
    # The unknown token stands for text.
    return {tokenizer.convert_tokens_to_ids(token) for token in control_tokens(processor)} - {tokenizer.unk_token_id}


def _check_prefix(tokenizer: Any, ids: Tensor, span: Range, text: str) -> None:
    decoded, wanted = _bare(tokenizer.decode(ids[slice(*span)])), _bare(text)
    # A token may have the space or the line break next to a word, but never half a word more.
    if wanted not in decoded or len(decoded) > len(wanted) + 2:
        raise PromptError("The safety prefix cannot be found among the prompt's tokens; try another text or placement.")


def _bare(text: str) -> str:
    """Text without white space, composed as some tokenizers do."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def to_device(inputs: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Inputs on the model's device, images in its dtype, and integers as they are."""
    return {
        name: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
