"""The policy's refusal in place of an answer, as LlamaIndex's responses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole

from guardalign_guardrails import Verdict
from guardalign_guardrails.verdict import event_of

T = TypeVar("T")

RECORD_KEY: Final = "guardalign"
"""Key in a response's ``additional_kwargs`` with the verdicts of the chat."""

FINISH_REASON: Final = "content_filter"
"""What OpenAI calls the end of an answer that a filter cut off; apps that look for one find this one too."""


@dataclass(frozen=True)
class Refusal:
    """A refusal.

    Attributes:
        text: The policy's answer.
        verdicts: The verdicts of the chat.
    """

    text: str = field(repr=False)
    verdicts: tuple[Verdict, ...] = ()

    def response(self, delta: str | None = None) -> ChatResponse:
        """The refusal as a chat response: no tokens were used."""
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return ChatResponse(
            message=ChatMessage(role=MessageRole.ASSISTANT, content=self.text),
            delta=delta,
            raw={"finish_reason": FINISH_REASON, "usage": usage},
            additional_kwargs={RECORD_KEY: event_of(self.verdicts)},
        )

    def stream(self) -> Generator[ChatResponse, None, None]:
        """The refusal as a stream of one chunk."""
        yield self.response(self.text)

    async def aresponse(self) -> ChatResponse:
        """`response` as a coroutine."""
        return self.response()

    async def astream(self) -> AsyncGenerator[ChatResponse, None]:
        """`stream` as a coroutine."""

        async def chunks() -> AsyncGenerator[ChatResponse, None]:
            yield self.response(self.text)

        return chunks()


def with_record(answer: T, verdicts: tuple[Verdict, ...]) -> T:
    """A response with the findings of its chat; itself if there are none, or if it is a stream.

    Also what could not be checked, and what the policy lets pass all the same, is a finding.
    """
    findings = [verdict for verdict in verdicts if verdict.finding != "none"]
    if not findings or not isinstance(answer, ChatResponse):
        return answer
    more: dict[str, Any] = {**answer.additional_kwargs, RECORD_KEY: event_of(findings)}
    return answer.model_copy(update={"additional_kwargs": more})
