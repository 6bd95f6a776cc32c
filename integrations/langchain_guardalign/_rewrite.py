"""Puts results back into messages: replaced blocks, the safety prefix, verdict records.

Nothing is changed in place, and what needs no change comes back as the very same object, which keeps ids, prompt
caches and equality intact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import BaseMessage, SystemMessage

from guardalign_guardrails import Verdict
from langchain_guardalign._media import Path

VERDICTS_KEY: Final = "guardalign"
"""Where in a message's ``response_metadata`` its verdicts are. Chat models do not send that mapping to a provider."""

_GAP: Final = "\n\n"
# They differ from run to run, and a message that says the same must stay the same.
_FLEETING: Final = ("timings", "is_cached")


def text_in_place_of(block: object, text: str) -> dict[str, Any]:
    """A text block to stand where an image block stood; a prompt-cache mark stays where it was."""
    kept = {"cache_control": block["cache_control"]} if isinstance(block, Mapping) and "cache_control" in block else {}
    return {"type": "text", "text": text, **kept}


def block_at(message: BaseMessage, path: Path) -> Any:
    """The block of a message to which a path leads."""
    node: Any = message.content
    for step in path:
        node = node[step]
    return node


def with_blocks(message: BaseMessage, blocks: Mapping[Path, Mapping[str, Any]]) -> BaseMessage:
    """The message with blocks replaced; itself if there are none."""
    if not blocks:
        return message
    content: Any = message.content
    for path, block in blocks.items():
        content = _put(content, path, block)
    return message.model_copy(update={"content": content})


def with_verdicts(message: BaseMessage, verdicts: Sequence[Verdict]) -> BaseMessage:
    """The message with its verdicts on record; itself if all images may pass, or the record says so already."""
    if all(verdict.proposed == "allow" for verdict in verdicts):
        return message
    record = [{k: v for k, v in verdict.summary().items() if k not in _FLEETING} for verdict in verdicts]
    if message.response_metadata.get(VERDICTS_KEY) == record:
        return message
    return message.model_copy(update={"response_metadata": {**message.response_metadata, VERDICTS_KEY: record}})


def with_prefix(messages: Sequence[BaseMessage], prefix: str) -> list[BaseMessage]:
    """The messages with the safety prefix at the head of the first system message, which is made if there is none.

    A system message outranks whatever the user says after it, and chat templates that allow one at all allow one, in
    front. A prefix that is there already is not put there again.
    """
    prefix = prefix.strip()
    result = list(messages)
    place = next((i for i, message in enumerate(messages) if isinstance(message, SystemMessage)), None)
    if not prefix:
        return result
    if place is None:
        return [SystemMessage(prefix), *result]
    content = result[place].content
    new: str | list[Any]
    if isinstance(content, str):
        if content == prefix or content.startswith(prefix + _GAP):
            return result
        new = prefix + _GAP + content if content else prefix
    else:
        head = content[0] if content else None
        if (head.get("text") if isinstance(head, dict) else head) == prefix:
            return result
        new = [{"type": "text", "text": prefix}, *content]
    result[place] = result[place].model_copy(update={"content": new})
    return result


def _put(node: Any, path: Path, value: object) -> Any:
    """A copy of ``node`` with another value at ``path``; everything beside the path is shared."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(node, Mapping):
        return {key: _put(item, rest, value) if key == step else item for key, item in node.items()}
    items = [_put(item, rest, value) if index == step else item for index, item in enumerate(node)]
    return tuple(items) if isinstance(node, tuple) else items
