"""Structured output of a guarded model: the models' own implementations, with the same decisions in front.

A refusal cannot be an object of the caller's schema, so a violation is an error here, or with ``include_raw`` what
LangChain gives for an answer that cannot be parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableSerializable
from pydantic import ConfigDict, Field, SkipValidation

from langchain_guardalign.chat.delegation import Delegation
from langchain_guardalign.chat.refusal import RefusingModel
from langchain_guardalign.chat.screened_runnable import ScreenedRunnable
from langchain_guardalign.component import PicklableComponent
from langchain_guardalign.derived import Change, with_arguments
from langchain_guardalign.errors.violations import not_retried
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

    def behind_guard(self, change: Change, arguments: Mapping[str, Any]) -> Runnable[Any, Any]:
        """The structured output of other models."""
        own = {name: getattr(self, name) for name in ("model", "route_to")}
        return self.model_copy(
            update={name: one and change(with_arguments(one, arguments)) for name, one in own.items()}
        )

    def _delegate(
        self, screened: ModelInput, arguments: dict[str, Any], config: RunnableConfig | None = None
    ) -> Delegation:
        chosen = self.guarded._delegate(screened, {}, config)  # noqa: SLF001  of the same base class
        if chosen.handled_by == "error":
            return chosen
        if chosen.handled_by in ("model", "route"):
            routed = self.route_to if chosen.handled_by == "route" else None
            return replace(chosen, target=routed or self.model, arguments=arguments)
        error = not_retried(screened.violation)
        if not self.include_raw:
            return replace(chosen, handled_by="error", target=error)
        result = {"raw": cast("RefusingModel", chosen.target).answer(), "parsed": None, "parsing_error": error}
        return replace(chosen, target=RunnableLambda(lambda _: result, name="GuardAlignRefusal"))
