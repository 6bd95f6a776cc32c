"""The verdicts of a check as an event of LlamaIndex's instrumentation: never pixels, text or an image's location.

Dispatchers swallow what their handlers raise, so these events are for tracing and metrics; nothing depends on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llama_index.core.instrumentation.events import BaseEvent

from guardalign_guardrails import Action, UnsafeContentError, Verdict
from guardalign_guardrails.verdict import event_of
from llama_index_guardalign.spans import DISPATCHER


class GuardVerdictEvent(BaseEvent):
    """The verdicts of one check.

    Attributes:
        component: Class name of the component that checked.
        action: The severest action taken.
        verdicts: One for each image or other media, in reading order, without regions.
    """

    component: str
    action: Action
    verdicts: list[dict[str, Any]]

    @classmethod
    def class_name(cls) -> str:
        """The event's name in dumps."""
        return "GuardVerdictEvent"


def announce(component: str, verdicts: Sequence[Verdict], span_id: str | None = None) -> None:
    """Dispatch the event of a check; none if there was no image.

    Args:
        component: Class name of the component that checked.
        verdicts: What it found; see `Verdict.finding` for whether an image is unsafe or could not be checked.
        span_id: The span that the check belongs to; None for the one that is open.
    """
    if not verdicts:
        return
    event = GuardVerdictEvent(component=component, **event_of(verdicts))
    DISPATCHER.event(event if span_id is None else event.model_copy(update={"span_id": span_id}))


@contextmanager
def announced_violations(component: str, span_id: str | None = None) -> Iterator[None]:
    """Dispatch the event of a check that ends in an error; see `announce`."""
    try:
        yield
    except UnsafeContentError as error:
        announce(component, [error.verdict], span_id)
        raise
