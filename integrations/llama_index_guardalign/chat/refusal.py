"""The policy's refusal in place of an answer, as LlamaIndex's responses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole

from guardalign_guardrails import Verdict
from guardalign_guardrails.verdict import event_of

RECORD_KEY: Final = "guardalign"
"""Where in a response's ``additional_kwargs`` it says what was found in the chat."""

FINISH_REASON: Final = "content_filter"
"""What OpenAI calls the end of an answer that a filter cut off; apps that look for one find this one too."""


@dataclass(frozen=True)
class Refusal:
    """A refusal.

    Attributes:
        text: What is said.
        verdicts: Why.
    """

    text: str = field(repr=False)
    verdicts: tuple[Verdict, ...] = ()

    def response(self, delta: str | None = None) -> ChatResponse:
        """As a chat response: no tokens were used."""
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return ChatResponse(
            message=ChatMessage(role=MessageRole.ASSISTANT, content=self.text),
            delta=delta,
            raw={"finish_reason": FINISH_REASON, "usage": usage},
            additional_kwargs={RECORD_KEY: event_of(self.verdicts)},
        )

    def stream(self) -> Generator[ChatResponse, None, None]:
        """As a stream of one piece."""
        yield self.response(self.text)

    async def aresponse(self) -> ChatResponse:
        """`response`, to be awaited."""
        return self.response()

    async def astream(self) -> AsyncGenerator[ChatResponse, None]:
        """The stream, to be awaited."""

        async def pieces() -> AsyncGenerator[ChatResponse, None]:
            yield self.response(self.text)

        return pieces()


def with_record(response: ChatResponse, verdicts: tuple[Verdict, ...]) -> ChatResponse:
    """A response that says what was found in the chat; itself if all images may pass."""
    findings = [verdict for verdict in verdicts if verdict.proposed != "allow"]
    if not findings:
        return response
    more: dict[str, Any] = {**response.additional_kwargs, RECORD_KEY: event_of(findings)}
    return response.model_copy(update={"additional_kwargs": more})
