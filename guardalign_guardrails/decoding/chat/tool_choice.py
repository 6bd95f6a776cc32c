"""Which tools a model is offered, and whether its answer has to be a call of one.

A model that has to call a tool is held by a grammar to the JSON of a call, whatever way of writing calls it was taught:
asking it in the prompt would not be enough.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from guardalign_guardrails.decoding.chat.messages import ToolCall
from guardalign_guardrails.errors import PromptError

Tools: TypeAlias = Sequence[Mapping[str, Any]]
"""JSON schemas of functions, as OpenAI and Hugging Face write them."""

ToolChoice: TypeAlias = str | bool | Mapping[str, Any] | None
"""``auto`` (None) lets the model choose, ``none`` (False) offers no tool, ``required`` (``any``, True) makes it call
one of them, and a tool's name makes it call that tool. A mapping names a tool as OpenAI writes it:
``{"type": "function", "function": {"name": ...}}``."""


@dataclass(frozen=True)
class ToolOffer:
    """The tools of one generation.

    Attributes:
        tools: Functions that the prompt describes.
        schema: JSON schema of the answer; None for free text, where calls are written as the model was taught.
        json_calls: Tools of which a JSON answer may be a call; empty without a schema.
    """

    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    schema: Mapping[str, Any] | None = field(default=None, repr=False)
    json_calls: frozenset[str] = frozenset()

    def call_in(self, text: str) -> ToolCall | None:
        """The call that a JSON answer is; None if it is cut off, or an answer of another schema."""
        if not self.json_calls:
            return None
        try:
            value = json.loads(text)
        except ValueError:
            return None
        if not isinstance(value, dict) or value.keys() != {"name", "arguments"}:
            return None
        is_call = value["name"] in self.json_calls and isinstance(value["arguments"], dict)
        return ToolCall(value["name"], value["arguments"]) if is_call else None


def offer_of(tools: Tools | None, choice: ToolChoice, json_schema: Mapping[str, Any] | None = None) -> ToolOffer:
    """What a model is offered.

    Args:
        tools: Functions the model may call.
        choice: See `ToolChoice`.
        json_schema: Schema of an answer that is no call. Where a call is required, the answer is that call.

    Raises:
        PromptError: The choice requires a call of a tool that is not offered.
    """
    given = tuple(tools or ())
    wanted = _read(choice)
    names = tuple(_function(tool)["name"] for tool in given)
    if wanted == "none":
        return ToolOffer(schema=json_schema)
    if wanted == "required":
        if not given:
            raise PromptError("A tool call is required and no tool is offered; give tools.")
        return ToolOffer(given, _schema(given), frozenset(names))
    if wanted != "auto":
        if wanted not in names:
            raise PromptError("tool_choice is none of auto, none, required and the names of the tools.")
        return ToolOffer(given, _schema([given[names.index(wanted)]]), frozenset([wanted]))
    if json_schema is None or not given:
        return ToolOffer(given, json_schema)
    return ToolOffer(given, _schema(given, json_schema), frozenset(names))


def _read(choice: ToolChoice) -> str:
    if isinstance(choice, Mapping):
        named = choice.get("function", choice)
        choice = named.get("name") or named.get("type") if isinstance(named, Mapping) else None
        if not isinstance(choice, str):
            raise PromptError("A tool_choice that is a mapping names a function.")
    if choice is None or choice is False:
        return "auto" if choice is None else "none"
    return "required" if choice is True or choice == "any" else choice


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function: Any = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise PromptError("A tool needs a name; give the JSON schema of a function.")
    return function


def _schema(tools: Tools, answer: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The schema of a call of one of the tools, or of an answer."""
    definitions: dict[str, Any] = {}

    def placed(name: str, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        root = f"#/$defs/{name}"
        moved: Mapping[str, Any] = _rooted(schema, root)
        if moved == schema:
            return schema
        # References point from the root, which is another one here.
        definitions[name] = moved
        return {"$ref": root}

    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": placed(f"tool{number}", function.get("parameters") or {"type": "object"}),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for number, function in enumerate(map(_function, tools))
    ]
    return {"anyOf": calls if answer is None else [placed("answer", answer), *calls], "$defs": definitions}


def _rooted(schema: Any, root: str) -> Any:
    """A schema whose references lead to where it stands in another one."""
    if isinstance(schema, Mapping):
        return {
            key: root + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _rooted(value, root)
            for key, value in schema.items()
        }
    return [_rooted(item, root) for item in schema] if isinstance(schema, list) else schema
