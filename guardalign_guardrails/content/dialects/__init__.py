"""The ways of writing an image block, one module per family.

To support another, write one function and add it to its family's tuple; whatever no dialect reads and still looks like
media is reported as uninspectable by the walker, so a gap here fails closed.
"""

from __future__ import annotations

from typing import Final

from guardalign_guardrails.content.dialect import Dialect
from guardalign_guardrails.content.dialects import anthropic, bedrock, google, langchain, mcp, openai

DIALECTS: Final[tuple[Dialect, ...]] = (
    *openai.DIALECTS,
    *langchain.DIALECTS,
    *anthropic.DIALECTS,
    *google.DIALECTS,
    *bedrock.DIALECTS,
    *mcp.DIALECTS,
)
"""Tried in this order on every mapping in a message's content."""

WHOLE_BLOCK_DIALECTS: Final[tuple[Dialect, ...]] = (openai.bare_image_url,)
"""Tried only on the blocks themselves, because deeper down what they look for is an everyday thing."""
