"""Finds text of a message's content that some client or server makes an image of.

Text of a tool is such text: clients and proxies make images of data URLs there, some after joining the blocks of a
list. It is media if it begins like media. All other text stays text unless it is media and nothing else. What text is
media is decided in `media_text`; blocks that stand for media are found in `walk`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from guardalign_guardrails.content.dialect import Path, Reading
from guardalign_guardrails.content.media_text import begins_like_text, media_of_promoted_text, media_of_text
from guardalign_guardrails.content.members import MAX_DEPTH, MAX_NODES
from guardalign_guardrails.content.walk import KINDS_OF_TOOLS, PLAIN_TEXT_KEYS, MediaBlock, find

# Bedrock's results of tools have no type.
_RESULT: Final = "toolResult"
# Keys of a block's text, or of blocks with text.
_TEXT_HOLDERS: Final = ("text", "content", "output", "refusal", "logs", "stdout", "stderr", "resource", _RESULT)
# A tuple: a block may state anything as its type, also what no set takes.
_PLAIN_TEXT_KINDS: Final = ("text", "input_text", "output_text")
_JOINED: Final = Reading(lambda _: "unsupported_block")


def find_shown(content: object, *, is_of_tool: bool) -> list[MediaBlock]:
    """The blocks and texts of a message's content that stand for media, in reading order.

    Args:
        content: Text, a list of blocks, or a single block.
        is_of_tool: Whether a tool says it.
    """
    if isinstance(content, str):
        reading = (media_of_promoted_text if is_of_tool else media_of_text)(content)
        return [] if reading is None else [MediaBlock((), reading)]
    if isinstance(content, list | tuple) and all(map(_is_plain_text, content)):
        return []
    blocks = find(content)
    texts: list[MediaBlock] = []
    _look(content, (), texts, iter(range(MAX_NODES)), is_of_tool=is_of_tool)
    if not texts:
        return blocks
    # A text inside a block that is replaced as a whole needs no treatment of its own.
    taken = {block.path for block in blocks}
    texts = [text for text in texts if not any(text.path[:size] in taken for size in range(len(text.path) + 1))]
    found = [*blocks, *texts]
    return sorted(found, key=lambda block: int(block.path[0])) if isinstance(content, list | tuple) else found


def _is_plain_text(block: object) -> bool:
    """Whether a block is text that begins like text, as most blocks are."""
    if type(block) is not dict or block.get("type") not in _PLAIN_TEXT_KINDS or not block.keys() <= PLAIN_TEXT_KEYS:
        return False
    text = block.get("text")
    return isinstance(text, str) and begins_like_text(text)


def _look(value: object, path: Path, found: list[MediaBlock], nodes: Iterator[int], *, is_of_tool: bool) -> None:
    """Add the texts of a value that stand for media."""
    if isinstance(value, str):
        reading = media_of_promoted_text(value) if is_of_tool else media_of_text(value)
        if reading is not None:
            found.append(MediaBlock(path, reading))
    elif next(nodes, None) is None or len(path) > MAX_DEPTH:
        return
    elif isinstance(value, list | tuple):
        before = len(found)
        for index, item in enumerate(value):
            if isinstance(item, str | Mapping | list | tuple):
                _look(item, (*path, index), found, nodes, is_of_tool=is_of_tool)
        if is_of_tool and len(value) > 1 and (joined := _joined(value, path, {each.path for each in found[before:]})):
            found[before:] = [*(each for each in found[before:] if each.path not in joined), *joined.values()]
    elif isinstance(value, Mapping):
        _look_in_block(value, path, found, nodes, is_of_tool=is_of_tool or _is_of_tool(value))


def _look_in_block(
    block: Mapping[Any, Any], path: Path, found: list[MediaBlock], nodes: Iterator[int], *, is_of_tool: bool
) -> None:
    # LangChain's wrapper around a block of another provider, which its clients take off.
    wrapped = ("value",) if block.get("type") == "non_standard" else ()
    for key in (*_TEXT_HOLDERS, *wrapped):
        value = block.get(key)
        if value is not None and not (isinstance(value, str) and begins_like_text(value)):
            _look(value, (*path, key), found, nodes, is_of_tool=is_of_tool)
    source = block.get("source")
    # Anthropic's documents: plain text, or a list of blocks.
    if isinstance(source, Mapping) and source.get("type") in ("text", "content"):
        key = "data" if source["type"] == "text" else "content"
        _look(source.get(key), (*path, "source", key), found, nodes, is_of_tool=is_of_tool)


def _is_of_tool(block: Mapping[Any, Any]) -> bool:
    kind = block.get("type")
    return kind.endswith(KINDS_OF_TOOLS) if isinstance(kind, str) else _RESULT in block


def _joined(blocks: Sequence[Any], path: Path, found: set[Path]) -> dict[Path, MediaBlock]:
    """The texts of a list that are media only once they are joined; an image can replace none of them."""
    texts = {where: text for where, text in _texts(blocks, path) if text.strip()}
    first = next(iter(texts), None)
    if len(texts) < 2 or first in found or media_of_promoted_text("".join(texts.values())) is None:
        return {}
    return {where: MediaBlock(where, _JOINED) for where in texts}


def _texts(blocks: Sequence[Any], path: Path) -> Iterator[tuple[Path, str]]:
    for index, block in enumerate(blocks):
        if isinstance(block, str):
            yield (*path, index), block
        elif isinstance(block, Mapping) and isinstance(block.get("text"), str):
            yield (*path, index, "text"), block["text"]
