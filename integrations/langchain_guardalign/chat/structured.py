"""Structured output of a guarded model: the models' own implementations, with the same decisions in front.

A refusal cannot be an object of the caller's schema, so a violation is an error here, or with ``include_raw`` what
LangChain gives for an answer that cannot be parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable, RunnableLambda, RunnableSerializable
from pydantic import ConfigDict, Field, SkipValidation

from guardalign_guardrails import UnsafeContentError
from langchain_guardalign.chat.delegation import Delegation
from langchain_guardalign.chat.refusal import RefusingModel
from langchain_guardalign.chat.screened_runnable import ScreenedRunnable
from langchain_guardalign.component import PicklableComponent
from langchain_guardalign.screening import ModelInput


class GuardedStructuredOutput(ScreenedRunnable, PicklableComponent, RunnableSerializable[LanguageModelInput, Any]):
    """See `GuardedChatModel.with_structured_output`, which makes it.

    Attributes:
        guarded: The guarded model, which decides.
        model: Structured output of the model it wraps.
        route_to: Structured output of the model for routed inputs; None if there is none.
        include_raw: Whether results are mappings of ``raw``, ``parsed`` and ``parsing_error``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    guarded: SkipValidation[ScreenedRunnable] = Field(repr=False)
    model: SkipValidation[Runnable[LanguageModelInput, Any]] = Field(repr=False)
    route_to: SkipValidation[Runnable[LanguageModelInput, Any] | None] = Field(default=None, repr=False)
    include_raw: bool = False

    @property
    def OutputType(self) -> Any:  # noqa: N802  LangChain's name
        """What the model's structured output gives."""
        return self.model.OutputType

    def _screen(self, screening: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        return self.guarded._screen(screening, inputs)  # noqa: SLF001  of the same base class

    def _delegate(self, screened: ModelInput, arguments: dict[str, Any]) -> Delegation:
        chosen = self.guarded._delegate(screened, {})  # noqa: SLF001  of the same base class
        if chosen.handled_by == "error":
            return chosen
        if chosen.handled_by in ("model", "route"):
            routed = self.route_to if chosen.handled_by == "route" else None
            return replace(chosen, target=routed or self.model, arguments=arguments)
        error = UnsafeContentError(screened.violation)
        if not self.include_raw:
            return replace(chosen, handled_by="error", target=error)
        result = {"raw": cast("RefusingModel", chosen.target).answer(), "parsed": None, "parsing_error": error}
        return replace(chosen, target=RunnableLambda(lambda _: result, name="GuardAlignRefusal"))
