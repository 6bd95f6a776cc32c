"""Tools on their way to a local model and calls on their way back, and a model made to call one.

A model that must call a tool is held to the JSON of a call while it writes; asking it nicely would not be enough.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool

from guardalign_guardrails.decoding.chat.answer import Answer
from guardalign_guardrails.decoding.chat.messages import ToolCall

_DEFINITIONS: Final = ("$defs", "definitions")
_FREE: Final = ("", "auto")
_ANY: Final = ("required", "any")
_FORCED_ID: Final = "call00000"


@dataclass(frozen=True)
class Offer:
    """The tools of one call.

    Attributes:
        tools: JSON schemas of functions, as OpenAI writes them.
        is_required: Whether the answer has to be a call.
    """

    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    is_required: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """What an answer that has to be a call looks like: name and arguments of one of the tools."""
        definitions: dict[str, Any] = {}
        choices = [_call_schema(number, tool["function"], definitions) for number, tool in enumerate(self.tools)]
        return {"anyOf": choices, "$defs": definitions} if definitions else {"anyOf": choices}


def offer_of(tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] | None) -> Offer:
    """What a model is offered.

    Args:
        tools: JSON schemas of functions, as OpenAI writes them.
        choice: ``auto`` or None for the model's own choice, ``none`` for no tool, ``required`` or ``any`` for any, or
            the one to call: its name, or OpenAI's ``{"type": "function", "function": {"name": ...}}``.

    Raises:
        ValueError: The tool to call is not among the tools.
    """
    own = tuple(tools or ())
    if isinstance(choice, Mapping):
        choice = str(cast("Mapping[str, Any]", choice.get("function") or choice).get("name", ""))
    if not own or choice == "none":
        return Offer()
    if choice is None or choice in _FREE:
        return Offer(own)
    if choice not in _ANY:
        own = tuple(tool for tool in own if tool["function"]["name"] == choice)
    if not own:
        raise ValueError("The tool to call is not among the tools.")
    return Offer(own, is_required=True)


def schemas_of(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """Tools as JSON schemas. The limit on descriptions is OpenAI's, not a local model's."""
    return [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]


def with_required_call(answer: Answer) -> Answer:
    """An answer that was held to a call, as one that makes it; as it is if it was cut short."""
    if answer.tool_calls:
        return answer
    try:
        call = json.loads(answer.text)
    except ValueError:
        return answer
    own = ToolCall(call["name"], call["arguments"], _FORCED_ID)
    return replace(answer, text="", tool_calls=(own,), finish_reason="tool_calls")


def blocks_of(calls: Sequence[ToolCall]) -> list[ToolCallBlock]:
    """Calls as blocks of a message."""
    return [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments)) for call in calls
    ]


def selections_of(message: ChatMessage) -> list[ToolSelection]:
    """The calls of a message, for whoever runs the tools."""
    return [
        ToolSelection(tool_id=block.tool_call_id or "", tool_name=block.tool_name, tool_kwargs=_arguments(block))
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]


def with_first_call(message: ChatMessage) -> ChatMessage:
    """The message without calls after the first; itself if there is none."""
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if len(calls) < 2:
        return message
    kept = [block for block in message.blocks if not isinstance(block, ToolCallBlock) or block is calls[0]]
    return message.model_copy(update={"blocks": kept})


def _arguments(block: ToolCallBlock) -> dict[str, Any]:
    return block.tool_kwargs if isinstance(block.tool_kwargs, dict) else cast("dict[str, Any]", {})


def _call_schema(number: int, function: Mapping[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a call to one function; what its parameters refer to goes to the definitions of the whole."""
    prefix = f"tool{number}_"
    parameters = dict(function.get("parameters") or {"type": "object", "properties": {}})
    for key in _DEFINITIONS:
        for name, schema in parameters.pop(key, {}).items():
            definitions[prefix + name] = _referring(schema, prefix)
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": _referring(parameters, prefix)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _referring(schema: Any, prefix: str) -> Any:
    """A schema whose references lead to the renamed definitions."""
    if isinstance(schema, Mapping):
        return {
            key: f"#/$defs/{prefix}{value.rsplit('/', 1)[-1]}"
            if key == "$ref" and isinstance(value, str)
            else _referring(value, prefix)
            for key, value in schema.items()
        }
    return [_referring(item, prefix) for item in schema] if isinstance(schema, list) else schema
