"""Content as it may be traced: without its images, also those that no guard looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from guardalign_guardrails.content.dialect import Path
from guardalign_guardrails.content.rewrite import block_at, text_in_place_of, with_blocks
from guardalign_guardrails.content.walk import find

OMITTED: Final = "[image omitted from the trace]"
"""What a trace shows in place of an image."""


def without_images(content: Any, text: str = OMITTED) -> Any:
    """Content with a text in place of every image; itself if there is none."""
    return with_text_at(content, [block.path for block in find(content)], text)


def with_text_at(content: Any, paths: Sequence[Path], text: str = OMITTED) -> Any:
    """Content with a text in place of the blocks at some paths; itself if there are none."""
    return with_blocks(content, {path: text_in_place_of(block_at(content, path), text) for path in paths})
