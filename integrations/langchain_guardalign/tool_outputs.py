"""What a model's own tools made, where LangChain's OpenAI client keeps it, and the ids that stand for images.

With ``output_version="v0"`` the client keeps the items of such tools beside a message's content, and sends them back
with it. Of an image that the API made it sends no more than the id, if the API stores what it answers: the id then
stands for the image as it was made, whatever took its place here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage

from guardalign_guardrails.content.payload import read_bytes
from guardalign_guardrails.images.containers import media_type

TOOL_OUTPUTS: Final = "tool_outputs"
"""Key in a message's ``additional_kwargs``."""

_ID_OF_GENERATED: Final = "ig_"


def outputs_of(message: BaseMessage) -> list[Any] | None:
    """The items that a model's tools left beside a message's content; None if there are none."""
    outputs = message.additional_kwargs.get(TOOL_OUTPUTS) if isinstance(message, AIMessage) else None
    return outputs if isinstance(outputs, list) and outputs else None


def with_outputs(message: BaseMessage, outputs: list[Any]) -> dict[str, Any]:
    """The ``additional_kwargs`` of a message with other items in it."""
    return {**message.additional_kwargs, TOOL_OUTPUTS: outputs}


def taken_back(before: Any, after: Any) -> Any:
    """Sanitised content of a model in the form in which the client and the API take it back.

    Args:
        before: The content as it came.
        after: The same, with other blocks in place of some.
    """
    if not isinstance(before, list | tuple) or not isinstance(after, list | tuple):
        return after
    return [new if new is old else _block(new) for old, new in zip(before, after, strict=True)]


def _block(block: Any) -> Any:
    if not isinstance(block, Mapping):
        return block
    kind = block.get("type")
    if kind == "non_standard":
        inner = _block(block["value"])
        # The client takes the wrapper off items of the API, for which neither text nor one of its own blocks is one.
        is_item = inner is block["value"] and not (isinstance(inner, Mapping) and inner.get("type") == "text")
        return block if is_item else inner
    if kind == "code_interpreter_call" and isinstance(block.get("outputs"), list):
        return {**block, "outputs": list(map(_output, block["outputs"]))}
    if kind == "image_generation_call":
        # Without an id it is no such item, so that the image stays as one of LangChain's own blocks.
        data = read_bytes(block["result"], len(block["result"]))
        mime = media_type(data) if isinstance(data, bytes) else None
        return {"type": "image", "base64": block["result"].rpartition(",")[2], "mime_type": mime or "image/png"}
    if str(block.get("id")).startswith(_ID_OF_GENERATED):
        return {key: value for key, value in block.items() if key != "id"}
    return block


def _output(output: Any) -> Any:
    """An output of a code interpreter, whose text is a log."""
    is_text = isinstance(output, Mapping) and output.get("type") == "text"
    return {"type": "logs", "logs": output["text"]} if is_text else output
