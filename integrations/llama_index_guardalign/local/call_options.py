"""The keyword arguments of a call, over an LLM's own settings, as what the core is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from guardalign_guardrails.content.chat import first_violation
from guardalign_guardrails.decoding.chat.answer import Answer
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.chat.tool_choice import ToolChoice, offer_of
from guardalign_guardrails.errors import UnsafeContentError

SETTING_NAMES: Final[Mapping[str, str]] = {"max_tokens": "max_new_tokens"}
"""What LlamaIndex calls otherwise than `GenerationSettings` does."""

_OWN: Final = ("report", "tool_choice", "tools")


@dataclass(frozen=True)
class Order:
    """What is asked of a model beside the chat.

    Attributes:
        settings: Of the generation.
        tools: JSON schemas of functions the model may call.
        tool_choice: Which of them, as the core takes it.
        is_reported: Whether shares of attention are measured.
    """

    settings: GenerationSettings
    tools: tuple[Mapping[str, Any], ...]
    tool_choice: ToolChoice
    is_reported: bool

    @classmethod
    def of(cls, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> Order:
        """The order of a call; an option that is None is none.

        Args:
            defaults: Settings, by the names of `GenerationSettings`, and ``report``.
            options: Keyword arguments of the call.

        Raises:
            TypeError: An option is not known.
            ValueError: An option has no value that can be taken.
        """
        given = {SETTING_NAMES.get(name, name): value for name, value in options.items() if value is not None}
        if unknown := sorted(given.keys() - GenerationSettings.model_fields.keys() - set(_OWN)):
            known = ", ".join(sorted({*GenerationSettings.model_fields, *SETTING_NAMES, *_OWN}))
            raise TypeError(f"The options {', '.join(unknown)} are not known; there are: {known}.")
        values = {**defaults, **given}
        own = {name: values.pop(name, None) for name in _OWN}
        if isinstance(values.get("stop"), str):
            values["stop"] = (values["stop"],)
        # An empty choice is none.
        choice, tools = own["tool_choice"] or None, tuple(own["tools"] or ())
        return cls(GenerationSettings(**values), tools, choice, bool(own["report"]))

    @property
    def arguments(self) -> dict[str, Any]:
        """For the core's ``chat`` and its like."""
        return {
            "tools": self.tools,
            "tool_choice": self.tool_choice,
            "settings": self.settings,
            "is_reported": self.is_reported,
        }

    def finished(self, answer: Answer) -> Answer:
        """An answer as the caller is to have it.

        Raises:
            UnsafeContentError: It is a refusal where JSON of a schema was asked for.
        """
        if answer.finish_reason != "refusal":
            return answer
        found = first_violation(answer.verdicts)
        if found is not None and offer_of(self.tools, self.tool_choice, self.settings.json_schema).schema is not None:
            raise UnsafeContentError(found)
        return answer
