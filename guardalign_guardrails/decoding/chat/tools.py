"""Parses tool calls in a model's text. Model families write them in a few formats, all of them some kind of JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from guardalign_guardrails.decoding.chat.messages import ToolCall

Parsed: TypeAlias = tuple[str, tuple[ToolCall, ...]]


@dataclass(frozen=True)
class ToolFormat:
    """A format of tool calls.

    Attributes:
        opening: What a call begins with; nothing from there on is streamed as text.
        parse: From an answer to its text and its calls. What cannot be parsed as a call stays text.
    """

    opening: str
    parse: Callable[[str], Parsed] = field(repr=False)


def format_of(processor: Any) -> ToolFormat | None:
    """The format that a model's chat template teaches it; None if it is none of the known ones."""
    template = str(getattr(processor, "chat_template", None) or "")
    if "tools" not in template:
        return None
    return next((known for sign, known in _SIGNS if sign in template), None)


def _tagged(text: str) -> Parsed:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``: Hermes, Qwen, SmolVLM and others."""
    calls: list[ToolCall] = []

    def take(found: re.Match[str]) -> str:
        read = _calls(found[1])
        calls.extend(read)
        return "" if read else found[0]

    rest = re.sub(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", take, text, flags=re.DOTALL)
    return rest.strip() if calls else text, numbered(calls)


def _listed(text: str) -> Parsed:
    """``[TOOL_CALLS][{"name": ..., "arguments": {...}}]``: Mistral."""
    before, mark, rest = text.partition("[TOOL_CALLS]")
    calls = _calls(rest) if mark else []
    return (before.strip(), numbered(calls)) if calls else (text, ())


def _bare(text: str) -> Parsed:
    """The whole answer is ``{"name": ..., "parameters": {...}}``: Llama 3."""
    calls = _calls(text.removeprefix("<|python_tag|>"))
    return ("", numbered(calls)) if calls else (text, ())


# Texts that are in a template only if its model was taught the format, the most specific first.
_SIGNS: Final = (
    ("<tool_call>", ToolFormat("<tool_call>", _tagged)),
    ("[TOOL_CALLS]", ToolFormat("[TOOL_CALLS]", _listed)),
    ('"parameters"', ToolFormat("{", _bare)),
)


def _calls(text: str) -> list[ToolCall]:
    try:
        # Text may follow the JSON.
        value, _ = json.JSONDecoder().raw_decode(text.strip())
    except ValueError:
        return []
    entries = value if isinstance(value, list) else [value]
    calls = []
    for entry in entries:
        entry = entry.get("function", entry) if isinstance(entry, dict) else {}
        arguments = entry.get("arguments", entry.get("parameters", {})) if isinstance(entry, dict) else None
        if not isinstance(arguments, dict) or not isinstance(entry.get("name"), str):
            return []
        calls.append(ToolCall(entry["name"], arguments))
    return calls


def numbered(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """Calls of one answer, each with its own id."""
    # Nine letters or digits, which is what Mistral's templates insist on.
    return tuple(ToolCall(call.name, call.arguments, f"call{number:05d}") for number, call in enumerate(calls))
