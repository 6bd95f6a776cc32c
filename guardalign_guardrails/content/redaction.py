"""Content as it may be traced: without its images, also those that no guard looked at."""

from __future__ import annotations

from typing import Any, Final

from guardalign_guardrails.content.rewrite import block_at, text_in_place_of, with_blocks
from guardalign_guardrails.content.walk import find

OMITTED: Final = "[image omitted from the trace]"
"""What a trace shows in place of an image."""


def without_images(content: Any, text: str = OMITTED) -> Any:
    """Content with a text in place of every image; itself if there is none."""
    return with_blocks(
        content, {block.path: text_in_place_of(block_at(content, block.path), text) for block in find(content)}
    )
