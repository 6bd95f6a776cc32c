"""Structured output of a guarded model: the models' own implementations, with the same decisions in front.

A refusal cannot be an object of the caller's schema, so a violation is an error here, or with ``include_raw`` what
LangChain gives for an answer that cannot be parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable, RunnableLambda, RunnableSerializable
from pydantic import ConfigDict, Field, SkipValidation

from langchain_guardalign.chat.decisions import InputDecision, InputRules, adecide_inputs, decide_inputs, refusal_of
from langchain_guardalign.chat.screened_runnable import Passage, ScreenedRunnable
from langchain_guardalign.runnable import ImageGuard


class GuardedStructuredOutput(ScreenedRunnable, RunnableSerializable[LanguageModelInput, Any]):
    """See `GuardedChatModel.with_structured_output`, which makes it.

    Attributes:
        model: Structured output of the guarded model.
        route_to: Structured output of the model for routed inputs; None if there is none.
        guard: What checks.
        rules: What its findings mean.
        include_raw: Whether results are mappings of ``raw``, ``parsed`` and ``parsing_error``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: SkipValidation[Runnable[LanguageModelInput, Any]] = Field(repr=False)
    route_to: SkipValidation[Runnable[LanguageModelInput, Any] | None] = Field(default=None, repr=False)
    guard: ImageGuard
    rules: SkipValidation[InputRules] = Field(repr=False)
    include_raw: bool = False

    @property
    def OutputType(self) -> Any:  # noqa: N802  LangChain's name
        """What the model's structured output gives."""
        return self.model.OutputType

    def _passages(self, inputs: Sequence[LanguageModelInput], arguments: dict[str, Any]) -> list[Passage]:
        return [self._way(decision, arguments) for decision in decide_inputs(self.guard, inputs, self.rules)]

    async def _apassages(self, inputs: Sequence[LanguageModelInput], arguments: dict[str, Any]) -> list[Passage]:
        return [self._way(decision, arguments) for decision in await adecide_inputs(self.guard, inputs, self.rules)]

    def _way(self, decision: InputDecision, arguments: dict[str, Any]) -> Passage:
        target: Runnable[LanguageModelInput, Any] | Exception
        if decision.handled_by == "model":
            target = self.model
        elif decision.handled_by == "route_to" and self.route_to is not None:
            target = self.route_to
        elif decision.handled_by == "refusal" and self.include_raw:
            return Passage(decision.verdicts, decision.input, self._refused(decision), {})
        else:
            target = decision.error or RuntimeError("no model for a routed input")
        return Passage(decision.verdicts, decision.input, target, arguments)

    def _refused(self, decision: InputDecision) -> Runnable[LanguageModelInput, Any]:
        refusal = refusal_of(self.guard.active_guard.policy, decision)
        result = {"raw": refusal.answer(), "parsed": None, "parsing_error": decision.error}
        return RunnableLambda(lambda _: result, name="GuardAlignRefusal")
