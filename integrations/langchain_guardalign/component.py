"""What the runnables and chat models with a guard share: the guard's field, dumps and pickles."""

from __future__ import annotations

from typing import Any

from langchain_core.load.serializable import Serializable, SerializedConstructor, SerializedNotImplemented
from pydantic import Field

from guardalign_guardrails.guarding.pickles import check_pickles
from guardalign_guardrails.guarding.settings import GuardField, GuardSettings


class PicklableComponent(Serializable):
    """Base of components that pickle where all that they were given does."""

    def __getstate__(self) -> dict[Any, Any]:
        """What pickling writes.

        Raises:
            NotPicklable: A field cannot be pickled; the error names it.
        """
        state: dict[Any, Any] = super().__getstate__()
        for name, value in {**state["__dict__"], **(state["__pydantic_private__"] or {})}.items():
            check_pickles(name, value)
        return state


class DumpableComponent(PicklableComponent):
    """Base of components that ``dumps`` writes as their settings.

    One with a ready guard or model is written as not implemented: its weights are no text.
    """

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True; one with a ready guard or model dumps as not implemented all the same."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where `langchain_core.load.load` finds the class, whatever module it is in."""
        return ["langchain_guardalign"]


class GuardedComponent(DumpableComponent):
    """Base of components that are given a guard.

    Attributes:
        guard: Checks: a guard, a policy or its file's path, or settings.
    """

    guard: GuardField = Field(default_factory=GuardSettings)

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """The fields that are not JSON, as JSON."""
        return {"guard": self.guard.model_dump(mode="json", exclude_none=True)}

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """What ``dumps`` writes."""
        return self.to_json_not_implemented() if self.guard.is_ready_guard else super().to_json()
