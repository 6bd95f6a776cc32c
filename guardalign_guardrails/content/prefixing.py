"""Puts the safety prefix at the head of text or of a message's content, once.

Plain data only; which message of a chat gets it is the integrations' own business, since they know its classes. What
begins with the prefix already comes back as the very same object, which keeps prompt caches and equality intact.
"""

from __future__ import annotations

from typing import Any, Final, Literal

Placement = Literal["system", "user"]
"""Where the prefix goes: to the head of an app's own instructions, or of the first message of the user, for models that
know no system message."""

_GAP: Final = "\n\n"


def prefixed(text: str, prefix: str) -> str:
    """The text with a prefix at its head, once."""
    if text == prefix or text.startswith(prefix + _GAP):
        return text
    return prefix + _GAP + text if text else prefix


def headed(content: Any, prefix: str, *, text_type: str = "text") -> Any:
    """A message's content with a prefix at its head, once.

    Args:
        content: Text, a list of blocks, or None for none.
        prefix: What is to stand in front.
        text_type: What a provider calls a block of text.

    Returns:
        Text for text, a list for a list; the content itself if the prefix is there.
    """
    if content is None or isinstance(content, str):
        return prefixed(content or "", prefix)
    blocks = list(content) if isinstance(content, list | tuple) else [content]
    head = blocks[0] if blocks else None
    if (head.get("text") if isinstance(head, dict) else head) == prefix:
        return content
    return [{"type": text_type, "text": prefix}, *blocks]
