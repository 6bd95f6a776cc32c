"""One call of a local chat model: LangChain's arguments as what the core is asked, and what its answer then means.

Answers that must be JSON, and tool calls that must be made, are the same thing to the core: a grammar. A call that was
forced is JSON of a tool's name and arguments, whatever way of writing calls the model was taught.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.json_schema import dereference_refs

from guardalign_guardrails.decoding.chat.answer import Answer, Piece
from guardalign_guardrails.decoding.chat.messages import ToolCall
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.config import SafetyPrefix
from guardalign_guardrails.errors import PromptError

SETTINGS: Final = (
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "stop",
    "seed",
    "repetition_penalty",
    "num_beams",
    "logprobs",
    "top_logprobs",
    "generate_kwargs",
)
"""Settings of a generation by LangChain's names."""

ANY_OBJECT: Final = {"type": "object"}
"""The schema of JSON mode."""

_OTHER_NAMES: Final = {"max_new_tokens": "max_tokens", "stop_sequences": "stop"}
# Of LangChain's own, and hints to services.
_MEANINGLESS: Final = ("stream", "strict", "stream_usage")


@dataclass(frozen=True)
class Call:
    """What is asked.

    Attributes:
        settings: Of the generation.
        tools: Functions the model may call.
        is_reported: Whether shares of attention are measured.
        json_calls: Tools of which a JSON answer may be a call.
    """

    settings: GenerationSettings
    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    is_reported: bool = False
    json_calls: frozenset[str] = frozenset()

    @property
    def is_held(self) -> bool:
        """Whether nothing is handed on before the end, since only then it can be told what it is."""
        return bool(self.json_calls)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the core."""
        return {"tools": self.tools or None, "settings": self.settings, "is_reported": self.is_reported}

    def words_of(self, piece: Piece, prefix: SafetyPrefix) -> str:
        """What a piece of an answer says."""
        return "" if self.is_held or piece.text == self._head(prefix) else piece.text

    def read(self, answer: Answer, prefix: SafetyPrefix) -> tuple[str, tuple[ToolCall, ...]]:
        """An answer's words and tool calls.

        Args:
            answer: Of the core.
            prefix: The model's; what stands at the start of answers is no part of their JSON.
        """
        words = answer.text.removeprefix(self._head(prefix))
        made = None if answer.tool_calls or not self.json_calls else _call_in(words, self.json_calls)
        return (words, answer.tool_calls) if made is None else ("", (made,))

    def _head(self, prefix: SafetyPrefix) -> str:
        is_at_start = self.settings.json_schema is not None and prefix.placement == "response"
        return prefix.text.strip() if is_at_start else ""


def settings_of(base: GenerationSettings, values: Mapping[str, Any]) -> GenerationSettings:
    """The core's settings.

    Args:
        base: What counts where nothing is said.
        values: By the names of `SETTINGS`; None says nothing.

    Raises:
        ValidationError: A value is out of range.
    """
    said = {name: value for name, value in values.items() if value is not None}
    is_wanted, count = said.pop("logprobs", None), said.pop("top_logprobs", None)
    if is_wanted is not None or count is not None:
        said["logprobs"] = None if is_wanted is False else count or 0
    if "max_tokens" in said:
        said["max_new_tokens"] = said.pop("max_tokens")
    stop = said.get("stop")
    said |= {} if stop is None else {"stop": (stop,) if isinstance(stop, str) else tuple(stop)}
    return GenerationSettings(**{**base.model_dump(), **said})


def call_of(
    base: GenerationSettings, defaults: Mapping[str, Any], arguments: Mapping[str, Any], *, is_reported: bool
) -> Call:
    """Read the arguments of a call.

    Args:
        base: What counts where neither says anything.
        defaults: The chat model's, by the names of `SETTINGS`.
        arguments: The call's: settings, ``tools``, ``tool_choice``, ``response_format`` and ``report``.
        is_reported: The chat model's word on whether shares of attention are measured.

    Raises:
        TypeError: An argument has no meaning for a local model.
        PromptError: A tool choice, a tool or a response format cannot be read.
        ValidationError: A setting is out of range.
    """
    given = {_OTHER_NAMES.get(name, name): value for name, value in arguments.items() if name not in _MEANINGLESS}
    tools, names = chosen(given.pop("tools", None) or (), given.pop("tool_choice", None))
    schema = schema_of(given.pop("response_format", None))
    is_reported = bool(given.pop("report", is_reported))
    if unknown := sorted(given.keys() - set(SETTINGS)):
        raise TypeError(f"a local model takes no {', '.join(unknown)}; settings are {', '.join(SETTINGS)}")
    settings = settings_of(base, {**defaults, **{name: value for name, value in given.items() if value is not None}})
    if schema is not None and tools and not names:
        # It may call a tool, or answer: what it writes tells which.
        names = tuple(_name(tool) for tool in tools)
        schema = {"anyOf": [dereference_refs(schema), *_schemas(tools, names)]}
    elif names:
        (*several,) = _schemas(tools, names)
        schema = several[0] if len(several) == 1 else {"anyOf": several}
    if schema is not None:
        settings = settings.model_copy(update={"json_schema": schema})
    return Call(settings, tools, is_reported, frozenset(names))


def chosen(tools: Sequence[Any], choice: Any) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """The tools a model is given, and the names of those of which it must call one.

    Args:
        tools: In any form that LangChain knows.
        choice: ``auto``, ``none``, ``any``, ``required``, a tool's name, or one of those as providers write them.

    Raises:
        PromptError: It names no tool that is there.
    """
    given = tuple(convert_to_openai_tool(tool) for tool in tools)
    if isinstance(choice, Mapping):
        named = choice.get("function", choice)
        choice = named.get("name") or choice.get("type")
    if choice is None or choice == "auto":
        return given, ()
    if choice is False or choice == "none":
        return (), ()
    names = tuple(_name(tool) for tool in given)
    if choice is True or choice in ("any", "required"):
        if not names:
            raise PromptError("A tool call cannot be forced where there is no tool; bind one.")
        return given, names
    if choice not in names:
        raise PromptError("tool_choice is none of auto, none, any and the names of the tools that are bound.")
    return given, (choice,)


def schema_of(response_format: Any) -> dict[str, Any] | None:
    """The JSON schema of a response format, as OpenAI writes it or as any schema that LangChain knows.

    Raises:
        PromptError: It cannot be read.
    """
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return dict(ANY_OBJECT)
    if kind == "json_schema" and isinstance(named := response_format.get("json_schema"), Mapping):
        response_format = named.get("schema")
    if isinstance(response_format, Mapping) and ("properties" in response_format or "type" in response_format):
        return dict(response_format)
    try:
        return convert_to_json_schema(response_format)
    except Exception as error:  # noqa: BLE001  it raises what comes along
        kind = type(error).__name__
    raise PromptError(f"The response format cannot be read as a JSON schema ({kind}).")


def _name(tool: Mapping[str, Any]) -> str:
    return str(tool["function"]["name"])


def _schemas(tools: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Schemas of calls. References are resolved, since they point from the root of what they were in."""
    return [
        {
            "type": "object",
            "properties": {
                "name": {"const": _name(tool)},
                "arguments": dereference_refs(tool["function"].get("parameters") or {"type": "object"}),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
        if _name(tool) in names
    ]


def _call_in(words: str, names: frozenset[str]) -> ToolCall | None:
    try:
        value = json.loads(words)
    except ValueError:
        return None
    is_call = isinstance(value, dict) and value.keys() == {"name", "arguments"} and value["name"] in names
    return ToolCall(value["name"], value["arguments"]) if is_call and isinstance(value["arguments"], dict) else None
