"""Reads images that a body holds within text: in transcripts of earlier turns, and as data URLs that a text quotes.

openai-agents hands a chat on to another agent as one text (``nest_handoff_history``). Its records are the items of that
chat, images included, so that they are read as items: each with its own role, which says where an image came from. Text
is written again only where an image in it changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from guardalign_guardrails.content.dialect import Path
from guardalign_guardrails.content.encoded_text import find_encoded, without_escapes
from guardalign_guardrails.content.rewrite import block_at, with_blocks

_PREAMBLE: Final = "For context, here is the conversation so far"
_RECORD: Final = re.compile(r"(?P<number>\d+\. )(?:(?P<who>[^:{}\[\]\"]{1,200}): )?(?P<said>.*)", re.DOTALL)
_ROLES: Final = ("assistant", "developer", "system", "user")
_CHATS: Final = ("input", "messages")


class Transcript(tuple[Any, ...]):
    """The items of a transcript, in the place of its text."""

    __slots__ = ()


@dataclass(frozen=True)
class Unfolded:
    """A body with values in the place of texts that hold images.

    Attributes:
        body: The body; the very same object if no text holds one.
        texts: By their paths, the texts, the values in their places, and how to write a text for other values.
    """

    body: Mapping[str, Any] = field(repr=False)
    texts: Mapping[Path, tuple[str, Sequence[Any], Callable[[Sequence[Any]], str]]] = field(repr=False)

    def folded(self, screened: Mapping[str, Any]) -> Mapping[str, Any]:
        """The screened body with text for text; the texts that came where nothing in them changed."""
        new: dict[Path, object] = {}
        for path, (text, values, write) in self.texts.items():
            now = block_at(screened, path)
            if isinstance(now, tuple):
                new[path] = text if all(map(_is_same, now, values)) else write(now)
        folded: Mapping[str, Any] = with_blocks(screened, new)
        return folded


def unfold(body: Mapping[str, Any], *, reads_text: bool = False) -> Unfolded:
    """Put items and blocks in the place of texts that hold images.

    Args:
        body: A request's body.
        reads_text: Whether data URLs count in other texts than transcripts too.
    """
    texts: dict[Path, tuple[str, Sequence[Any], Callable[[Sequence[Any]], str]]] = {}
    for path, text, is_assistant in _texts(body):
        if is_assistant and text.startswith(_PREAMBLE):
            texts[path] = _transcript(text, reads_text=reads_text)
        elif reads_text and (spans := [each.span for each in find_encoded(text) if each.is_labelled]):
            texts[path] = (text, _quoting(text, spans), _joined)
    return Unfolded(with_blocks(body, {path: values for path, (_, values, _) in texts.items()}), texts)


def _texts(body: Mapping[str, Any]) -> Iterator[tuple[Path, str, bool]]:
    """The texts of all messages, and whether the model is said to have written them."""
    for key in _CHATS:
        messages = body.get(key)
        for index, message in enumerate(messages if isinstance(messages, list | tuple) else ()):
            content = message.get("content") if isinstance(message, Mapping) else None
            path, is_assistant = (
                (key, index, "content"),
                isinstance(message, Mapping) and message.get("role") == "assistant",
            )
            if isinstance(content, str):
                yield path, content, is_assistant
            elif isinstance(content, list | tuple):
                for place, block in enumerate(content):
                    text = block.get("text") if isinstance(block, Mapping) else None
                    if isinstance(text, str) and block.keys() <= {"type", "text", "annotations", "logprobs"}:
                        yield (*path, place), text, False


def _transcript(text: str, *, reads_text: bool) -> tuple[str, Sequence[Any], Callable[[Sequence[Any]], str]]:
    lines = text.split("\n")
    records = [(place, record) for place, line in enumerate(lines) if (record := _RECORD.fullmatch(line)) is not None]
    items = [_item(record) for _, record in records]
    # What an item says may be such a text itself.
    inner = unfold({"input": items}, reads_text=reads_text)

    def write(now: Sequence[Any]) -> str:
        new = list(lines)
        for (place, record), item, old in zip(records, inner.folded({"input": now})["input"], items, strict=True):
            if item != old:
                new[place] = record["number"] + json.dumps(item, ensure_ascii=False)
        return "\n".join(new)

    return text, Transcript(inner.body["input"]), write


def _item(record: re.Match[str]) -> Mapping[str, Any]:
    """The item that a record stands for."""
    who, said = record["who"], record["said"]
    try:
        value = json.loads(said) if said[:1] in ("{", "[") else said
    except (ValueError, RecursionError):
        value = said
    if isinstance(value, Mapping) and (who is None or who not in _ROLES):
        # Earlier releases wrote the type before the rest.
        return value if who is None else {**value, "type": who}
    # A mapping is what somebody said, whatever role it claims.
    content = value if isinstance(value, list) else said
    return {"role": (who or "assistant").partition(" ")[0], "content": content}


def _quoting(text: str, spans: Sequence[tuple[int, int]]) -> tuple[Any, ...]:
    """A text as blocks: what stands around the images as text, and each image."""
    blocks: list[dict[str, str]] = []
    end = 0
    for start, stop in spans:
        blocks.append({"type": "input_text", "text": text[end:start]})
        blocks.append({"type": "input_image", "image_url": without_escapes(text[start:stop])})
        end = stop
    return (*blocks, {"type": "input_text", "text": text[end:]})


def _joined(blocks: Sequence[Any]) -> str:
    return "".join(block["image_url"] if block["type"] == "input_image" else block["text"] for block in blocks)


def _is_same(one: object, other: object) -> bool:
    return one is other
