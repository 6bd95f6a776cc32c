"""Structured output of a local chat model: a grammar while it writes, LangChain's parsers for what it wrote.

A refusal is no object of a schema, so it is an error here, as it is for guarded hosted models; so is JSON that was cut
off by ``max_tokens``, the only kind of bad JSON that a grammar leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from guardalign_guardrails import Verdict
from langchain_guardalign.chat.refusal import FINISH_REASON
from langchain_guardalign.errors.violations import not_retried
from langchain_guardalign.local.calls import ANY_OBJECT, schema_of
from langchain_guardalign.rewrite import VERDICTS_KEY


class _Checked:
    """To be put before a parser: raises what parsing would not."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Parse an answer; see `parsed`."""
        return parsed(result, lambda: cast("Any", super(_Checked, self)).parse_result(result, partial=partial))


class _Dicts(_Checked, JsonOutputParser):
    """Dictionaries, which stream as they grow."""


class _Objects(_Checked, PydanticOutputParser[Any]):
    """Objects of a pydantic class."""


class _CalledDicts(_Checked, JsonOutputKeyToolsParser):
    """The arguments of a tool call."""


class _CalledObjects(_Checked, PydanticToolsParser):
    """The arguments of a tool call as objects of a pydantic class."""


def structured_output(
    model: Any, schema: Any, method: str, *, include_raw: bool, **kwargs: Any
) -> Runnable[LanguageModelInput, Any]:
    """A chat model whose answers are JSON, and a parser that makes objects of them.

    Args:
        model: The chat model, a `ChatGuardAlign`.
        schema: A pydantic class for objects of it; dictionaries for all else.
        method: ``json_schema``, ``json_mode`` or ``function_calling``.
        include_raw: Whether results are mappings of ``raw``, ``parsed`` and ``parsing_error``.
        **kwargs: More arguments of calls.
    """
    if method not in ("json_schema", "json_mode", "function_calling"):
        raise ValueError("method is json_schema, json_mode or function_calling")
    if schema is None and method != "json_mode":
        raise ValueError("only method='json_mode' can do without a schema")
    wanted = ANY_OBJECT if schema is None else schema_of(schema)
    traced = {"kwargs": {"method": method}, "schema": wanted if schema is None else schema}
    if method == "function_calling":
        calling = model.bind_tools([schema], tool_choice="any", ls_structured_output_format=traced, **kwargs)
        return _with_parser(calling, _parser_of_calls(schema), include_raw)
    response = {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
    answering = model.bind(response_format=response, ls_structured_output_format=traced, **kwargs)
    return _with_parser(answering, _Objects(pydantic_object=schema) if _is_class(schema) else _Dicts(), include_raw)


def _parser_of_calls(schema: Any) -> Any:
    if _is_class(schema):
        return _CalledObjects(tools=[schema], first_tool_only=True)
    name = convert_to_openai_tool(schema)["function"]["name"]
    return _CalledDicts(key_name=name, first_tool_only=True)


def _is_class(schema: Any) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _with_parser(
    model: Runnable[LanguageModelInput, Any], parser: Any, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    if not include_raw:
        return cast("Runnable[LanguageModelInput, Any]", model | parser)
    whole = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    without = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | whole.with_fallbacks([without], exception_key="parsing_error")


def parsed(result: Sequence[Generation], parse: Callable[[], Any]) -> Any:
    """What a parser makes of an answer, if it is one.

    Raises:
        UnsafeContentError: It is the policy's refusal.
        OutputParserException: It was cut off, or is not of the schema.
    """
    message = result[0].message if isinstance(result[0], ChatGeneration) else None
    metadata = {} if message is None else message.response_metadata
    if metadata.get("finish_reason") == FINISH_REASON:
        raise not_retried(_violation(metadata))
    is_cut_off = metadata.get("finish_reason") == "length"
    try:
        made = parse()
    except OutputParserException:
        if not is_cut_off:
            raise
        made = None
    if made is not None or not is_cut_off:
        return made
    raise OutputParserException("The answer was cut off before its JSON was complete; allow more max_tokens.")


def _violation(metadata: dict[str, Any]) -> Verdict:
    """The verdict that a refusal has on record."""
    records = [Verdict.model_validate(record) for record in metadata[VERDICTS_KEY]]
    blocked = [one for one in records if one.source == "user" and one.action in ("block", "route")]
    return min(blocked, key=lambda one: one.action)
