"""Messages as a token counter may see them. Some counters fetch the images behind URLs; nothing is fetched here."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import BaseMessage

from guardalign_guardrails.content.payload import Remote
from guardalign_guardrails.content.rewrite import block_at, text_in_place_of, with_blocks
from guardalign_guardrails.content.walk import find

_ELSEWHERE = "[image behind a URL]"


def without_remote_images(messages: Sequence[BaseMessage], max_bytes: int) -> list[BaseMessage]:
    """The messages with a few words for every image that is elsewhere; each itself if there is none.

    Args:
        messages: A chat.
        max_bytes: Size above which an image is not decoded.
    """
    return [_without_remote(message, max_bytes) for message in messages]


def _without_remote(message: BaseMessage, max_bytes: int) -> BaseMessage:
    content = message.content
    remote = [slot.path for slot in find(content) if isinstance(slot.reading.read(max_bytes), Remote)]
    if not remote:
        return message
    blocks = {path: text_in_place_of(block_at(content, path), _ELSEWHERE) for path in remote}
    return message.model_copy(update={"content": with_blocks(content, blocks)})
