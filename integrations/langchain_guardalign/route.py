"""Sends an input to one of two runnables by what a guard finds in it, checking once.

`RunnableBranch` would run the guard as a condition and again to sanitise; here one check decides and is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from pydantic import ConfigDict

from guardalign_guardrails.content.chat import Placement, first_violation
from langchain_guardalign.artifacts import Artifacts
from langchain_guardalign.chat.delegation import Delegation
from langchain_guardalign.chat.screened_runnable import ScreenedRunnable
from langchain_guardalign.component import GuardedComponent
from langchain_guardalign.derived import Change, with_arguments
from langchain_guardalign.screening import ModelInput, output_of

Branch = Runnable[LanguageModelInput, Any]


class GuardedRoute(ScreenedRunnable, GuardedComponent, RunnableSerializable[LanguageModelInput, Any]):
    """See `ImageGuard.route`, which makes it.

    Its run, around that of the chosen runnable, shows the input without what was taken out.

    Attributes:
        guard: Checks.
        artifacts: As of the `ImageGuard`.
        placement: As of the `ImageGuard`.
        safe: Gets inputs whose severest action is milder than ``route``.
        unsafe: Gets the others.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    artifacts: Artifacts = "mcp"
    placement: Placement = "system"
    safe: Branch
    unsafe: Branch

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """False, as it ever was."""
        return False

    def _screen(self, screening: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        return screening(self.guard.guard, inputs, artifacts=self.artifacts, on_violation="notice")

    def _delegate(
        self, screened: ModelInput, arguments: dict[str, Any], config: RunnableConfig | None = None
    ) -> Delegation:
        output, shown = output_of(self.guard.policy, screened, self.placement), screened.shown_input
        if first_violation(screened.verdicts) is None:
            return Delegation("model", screened.verdicts, output, shown, self.safe, arguments)
        return Delegation("route", screened.verdicts, output, shown, self.unsafe, arguments)

    def behind_guard(self, change: Change, arguments: Mapping[str, Any]) -> Runnable[Any, Any]:
        """A route between other runnables."""
        own = {name: with_arguments(getattr(self, name), arguments) for name in ("safe", "unsafe")}
        return self.model_copy(update={name: change(runnable) for name, runnable in own.items()})
