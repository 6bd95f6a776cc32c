"""A refusal as a chat model: it answers in place of the model that is not asked.

A refusal that comes from a model streams, batches and shows in traces like any answer, so callers need no second path
for it. What was blocked is not in the input it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from guardalign_guardrails import Policy, Verdict
from langchain_guardalign.events import LLMRun
from langchain_guardalign.rewrite import with_verdicts

FINISH_REASON: Final = "content_filter"
"""What OpenAI calls the end of an answer that a filter cut off; apps that look for one find this one too."""


class RefusingModel(BaseChatModel):
    """Answers everything with one refusal.

    Attributes:
        text: The refusal.
        verdicts: Why; they are put on record in the answer.
    """

    text: str
    verdicts: tuple[Verdict, ...] = ()

    @classmethod
    def of(cls, policy: Policy, violation: Verdict, verdicts: Sequence[Verdict]) -> RefusingModel:
        """The policy's refusal because of a violation, with all verdicts on record. It is cheap, so never cached."""
        return cls(text=policy.refusal_for(violation), verdicts=tuple(verdicts), cache=False)

    @property
    def _llm_type(self) -> str:
        return "guardalign-refusal"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"refusal": self.text}

    def answer(self) -> AIMessage:
        """The refusal as a message: no tokens were used, and the findings are on record."""
        usage = UsageMetadata(input_tokens=0, output_tokens=0, total_tokens=0)
        message = AIMessage(self.text, response_metadata={"finish_reason": FINISH_REASON}, usage_metadata=usage)
        return with_verdicts(message, self.verdicts)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(ls_provider="guardalign", ls_model_name="refusal", ls_model_type="chat")

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: LLMRun = None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.answer())])

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: LLMRun = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        chunk = AIMessageChunk(**self.answer().model_dump(exclude={"type"}), chunk_position="last")
        yield ChatGenerationChunk(message=chunk)
