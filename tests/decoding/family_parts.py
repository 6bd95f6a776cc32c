"""What the families' models and processors are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import torch
from tiny_models import TEXT, made

_TEXT: Final = {**TEXT, "max_position_embeddings": 1024, "num_hidden_layers": 2}
TOWER: Final = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CHATML_MARKS: Final = {"turn_start_token": "<|im_start|>", "turn_end_token": "<|im_end|>"}


@dataclass(frozen=True, eq=False)
class Family:
    """A model and what writes its prompts.

    Attributes:
        name: Of the family.
        processor: Its processor; its tokenizer if it reads text only.
        make: Its model, with weights that are not seeded.
        takes_images: Whether it reads images.
        image: The token that stands for an image, or a part of one, in token ids; empty without images.
        is_expanded: Whether an image takes more than one token.
        turn_end: What a user could type to end a turn.
    """

    name: str
    processor: Any = field(repr=False)
    make: Callable[[], Any] = field(repr=False)
    takes_images: bool = True
    image: str = "<image>"
    is_expanded: bool = True
    turn_end: str = "</s>"

    @property
    def tokenizer(self) -> Any:
        """What cuts its words."""
        return getattr(self.processor, "tokenizer", self.processor)

    def model(self, dtype: torch.dtype = torch.float32) -> Any:
        """The model, seeded, with scores large enough to matter."""
        return _model(self, dtype)


@cache
def _model(one: Family, dtype: torch.dtype) -> Any:
    return made(one.make, dtype)


def words_config(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Settings of a tiny language model for a tokenizer."""
    return {
        **_TEXT,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **more,
    }


def without_head_dim(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings for models that work their head size out."""
    return {key: value for key, value in settings.items() if key != "head_dim"}
