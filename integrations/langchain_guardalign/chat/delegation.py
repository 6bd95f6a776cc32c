"""Which runnable handles an input, and what it is given; inputs of one call are grouped by that runnable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable

from guardalign_guardrails import Verdict
from guardalign_guardrails.content.chat import HandledBy


@dataclass(frozen=True)
class Delegation:
    """The decision on one input.

    Attributes:
        handled_by: Who answers.
        verdicts: What was found in it.
        input: The input for the target; the very same object if no image was in it and no prefix was due.
        shown: What the run shows as its input: the caller's messages without what was taken out, and no prefix.
        target: What handles it, or the error to raise instead.
        arguments: Keyword arguments for the target.
    """

    handled_by: HandledBy
    verdicts: tuple[Verdict, ...]
    input: LanguageModelInput = field(repr=False)
    shown: Any = field(repr=False)
    target: Runnable[LanguageModelInput, Any] | Exception = field(repr=False)
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)

    def runnable(self) -> Runnable[LanguageModelInput, Any]:
        """The target, or its error raised."""
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


@dataclass(frozen=True)
class TargetBatch:
    """The inputs of one target.

    Attributes:
        target: What handles them.
        places: Where they stand among all inputs.
        inputs: What the target is given.
        arguments: Its keyword arguments.
    """

    target: Any
    places: list[int]
    inputs: list[Any] = field(repr=False)
    arguments: dict[str, Any] = field(repr=False)


def by_target(delegations: Sequence[Delegation]) -> list[TargetBatch]:
    """One batch per target, in the order of their first inputs; inputs with an error are in none."""
    batches: dict[int, TargetBatch] = {}
    for place, each in enumerate(delegations):
        if isinstance(each.target, Exception):
            continue
        batch = batches.setdefault(id(each.target), TargetBatch(each.target, [], [], each.arguments))
        batch.places.append(place)
        batch.inputs.append(each.input)
    return list(batches.values())
