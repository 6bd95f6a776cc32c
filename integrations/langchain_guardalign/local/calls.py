"""One call of a local chat model: LangChain's arguments as arguments of the core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool

from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
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


def settings_of(base: GenerationSettings, values: Mapping[str, Any]) -> GenerationSettings:
    """The core's settings.

    Args:
        base: Defaults.
        values: By the names of `SETTINGS`; None leaves a default.

    Raises:
        ValidationError: A value is out of range.
    """
    given = {name: value for name, value in values.items() if value is not None}
    is_wanted, count = given.pop("logprobs", None), given.pop("top_logprobs", None)
    if is_wanted is not None or count is not None:
        given["logprobs"] = None if is_wanted is False else count or 0
    if "max_tokens" in given:
        given["max_new_tokens"] = given.pop("max_tokens")
    stop = given.get("stop")
    given |= {} if stop is None else {"stop": (stop,) if isinstance(stop, str) else tuple(stop)}
    return GenerationSettings(**{**base.model_dump(), **given})


def arguments_of(
    base: GenerationSettings, defaults: Mapping[str, Any], arguments: Mapping[str, Any], *, is_reported: bool
) -> dict[str, Any]:
    """A call's arguments as those of the core's ``chat``.

    Args:
        base: Defaults of the local model.
        defaults: Those of the chat model, by the names of `SETTINGS`, which go before them.
        arguments: The call's: settings, ``tools``, ``tool_choice``, ``response_format`` and ``report``.
        is_reported: Whether shares of attention are measured by default.

    Raises:
        TypeError: An argument has no meaning for a local model.
        PromptError: A response format cannot be read.
        ValidationError: A setting is out of range.
    """
    given = {_OTHER_NAMES.get(name, name): value for name, value in arguments.items() if name not in _MEANINGLESS}
    tools, choice = tools_of(given.pop("tools", None) or ()), given.pop("tool_choice", None)
    schema = schema_of(given.pop("response_format", None))
    is_reported = bool(given.pop("report", is_reported))
    if unknown := sorted(given.keys() - set(SETTINGS)):
        raise TypeError(f"a local model takes no {', '.join(unknown)}; settings are {', '.join(SETTINGS)}")
    settings = settings_of(base, {**defaults, **{name: value for name, value in given.items() if value is not None}})
    if schema is not None:
        settings = settings.model_copy(update={"json_schema": schema})
    return {"tools": tools or None, "tool_choice": choice, "settings": settings, "is_reported": is_reported}


def tools_of(tools: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Tools in any form that LangChain knows, as JSON schemas of functions."""
    return tuple(convert_to_openai_tool(tool) for tool in tools)


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


def check_tools(tools: Any, lvlm: CalibratedLVLM) -> None:
    """Make sure that a model knows tools if it is offered some.

    Raises:
        PromptError: It knows none.
    """
    if tools and not lvlm.knows_tools:
        raise PromptError(
            "The model's chat template knows no tools, or its way of writing calls is none of the known ones; use "
            "with_structured_output, which works with any model, or a model that was taught tools."
        )
