"""The keyword arguments of a call, over an LLM's own settings, as arguments of the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from guardalign_guardrails.decoding.chat.settings import GenerationSettings

SETTING_NAMES: Final[Mapping[str, str]] = {"max_tokens": "max_new_tokens"}
"""LlamaIndex's names for fields of `GenerationSettings`, where they differ."""

_OTHERS: Final = ("report", "tool_choice", "tools")


def arguments_of(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for `CalibratedLVLM.chat` and its like.

    Args:
        defaults: Settings, by the names of `GenerationSettings`, and ``report``.
        options: Keyword arguments of the call; None leaves an option to the defaults.

    Raises:
        TypeError: An option is not known.
        ValueError: An option's value is out of range.
    """
    given = {SETTING_NAMES.get(name, name): value for name, value in options.items() if value is not None}
    if unknown := sorted(given.keys() - GenerationSettings.model_fields.keys() - set(_OTHERS)):
        known = ", ".join(sorted({*GenerationSettings.model_fields, *SETTING_NAMES, *_OTHERS}))
        raise TypeError(f"The options {', '.join(unknown)} are not known; there are: {known}.")
    values = {**defaults, **given}
    report, choice, tools = (values.pop(name, None) for name in _OTHERS)
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    return {
        "settings": GenerationSettings(**values),
        "tools": tuple(tools or ()),
        # An empty choice is none.
        "tool_choice": choice or None,
        "is_reported": bool(report),
    }
