"""`BaseChatModel.generate` over several models: who generates what, and their results as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult, RunInfo

from langchain_guardalign.chat.screened_runnable import Passage


@dataclass(frozen=True)
class Share:
    """What one model generates.

    Attributes:
        model: The model.
        places: Which of the chats it gets.
        chats: They, sanitised.
        arguments: Its keyword arguments.
    """

    model: BaseChatModel
    places: tuple[int, ...]
    chats: list[list[BaseMessage]] = field(repr=False)
    arguments: dict[str, Any] = field(repr=False)

    def own(self, run_id: UUID | None) -> UUID | None:
        """The run id of a call, which LangChain gives to the run of the first chat."""
        return run_id if self.places[0] == 0 else None


def shares(passages: Sequence[Passage]) -> list[Share]:
    """One share per model, in the order of their first chats; raises the error of a passage that has one.

    Args:
        passages: Of inputs that are lists of messages to targets that are chat models.
    """
    places: dict[int, list[int]] = {}
    for place, passage in enumerate(passages):
        places.setdefault(id(passage.enter()), []).append(place)
    return [
        Share(
            cast("BaseChatModel", passages[own[0]].target),
            tuple(own),
            [cast("list[BaseMessage]", passages[place].input) for place in own],
            passages[own[0]].arguments,
        )
        for own in places.values()
    ]


def joined(results: Sequence[tuple[Share, LLMResult]]) -> LLMResult:
    """The results of all shares as one, in the order of the chats; a single one as it is.

    ``llm_output`` sums up a whole call and belongs to its provider; several are not added up, each generation's message
    has its own.
    """
    if len(results) == 1:
        return results[0][1]
    generations: dict[int, Any] = {}
    runs: dict[int, RunInfo] = {}
    for share, result in results:
        generations |= dict(zip(share.places, result.generations, strict=True))
        runs |= dict(zip(share.places, result.run or (), strict=False))
    return LLMResult(
        generations=[generations[place] for place in sorted(generations)],
        llm_output={},
        run=[runs[place] for place in sorted(runs)] or None,
    )
