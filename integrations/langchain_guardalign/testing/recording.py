"""A LangChain chat model and a callback handler that keep what they are given; for the contracts, and for other tests.

The model answers by rule, not from a script, so the order of calls does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.messages.tool import tool_call
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field


class RecordingModel(BaseChatModel):
    """Answers ``words``, one token at a time, and keeps every list of messages it is given.

    Attributes:
        received: What it was given, call by call.
        words: The tokens of its answer.
        tool: Name of a tool it calls, without arguments, whenever the last message is a human one; None for none.
    """

    received: list[list[BaseMessage]] = Field(default_factory=list, repr=False)
    words: tuple[str, ...] = ("one ", "two ", "three")
    tool: str | None = None

    @property
    def _llm_type(self) -> str:
        return "recording"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """Itself: which tool it calls is reported by ``tool``."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.received.append(list(messages))
        return ChatResult(
            generations=[ChatGeneration(message=self._called(messages) or AIMessage("".join(self.words)))]
        )

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        self.received.append(list(messages))
        call = self._called(messages)
        if call is not None:
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_calls=call.tool_calls))
            return
        for word in self.words:
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=word))
            if run_manager is not None:
                run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk

    def _called(self, messages: Sequence[BaseMessage]) -> AIMessage | None:
        if self.tool is None or not isinstance(messages[-1], HumanMessage):
            return None
        # Calls of one conversation need names of their own.
        return AIMessage("", tool_calls=[tool_call(name=self.tool, args={}, id=f"call_{len(messages)}")])


@dataclass(frozen=True)
class Run:
    """What a tracer receives of one run.

    Attributes:
        id: The run's own.
        parent: The run it is part of; None for an outermost one.
        name: As traces show it.
        tags: Of the run.
        metadata: Of the run.
        reported: Its inputs, outputs and errors.
    """

    id: UUID
    parent: UUID | None
    name: str
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    reported: list[Any] = field(default_factory=list, repr=False)


class Listener(BaseCallbackHandler):
    """Keeps what a tracer receives.

    Attributes:
        events: Name and data of each custom event.
        runs: Each chain, model and tool run, in the order of their starts.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.runs: list[Run] = []

    @property
    def outermost(self) -> list[Run]:
        """The runs that are part of no other."""
        return [run for run in self.runs if run.parent is None]

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        """Keep an event."""
        self.events.append((name, data))

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        """Keep a run."""
        self._start(inputs, **kwargs)

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        """Keep a run."""
        self._start(messages, **kwargs)

    def on_tool_start(self, serialized: Any, input_str: str, **kwargs: Any) -> None:
        """Keep a run."""
        self._start(input_str, **kwargs)

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        """Add to a run."""
        self._add(outputs, **kwargs)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        """Add to a run."""
        self._add(response, **kwargs)

    def on_tool_end(self, output: Any, **kwargs: Any) -> None:
        """Add to a run."""
        self._add(output, **kwargs)

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        """Add to a run."""
        self._add(error, **kwargs)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        """Add to a run."""
        self._add(error, **kwargs)

    def _start(
        self,
        reported: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        name = str(kwargs.get("name") or "")
        self.runs.append(Run(run_id, parent_run_id, name, tuple(tags or ()), dict(metadata or {}), [reported]))

    def _add(self, reported: Any, *, run_id: UUID, **kwargs: Any) -> None:
        for run in self.runs:
            if run.id == run_id:
                run.reported.append(reported)
