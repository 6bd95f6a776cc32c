"""A LangChain agent to chat with under test: a recording model, a checkpointer, a tool that takes images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.tools import BaseTool, InjectedToolCallId
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from langsmith import Client
from langsmith.run_helpers import tracing_context
from pydantic import BaseModel

from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.testing.chats import image_block, text_block
from langchain_guardalign.testing.messages import Call
from langchain_guardalign.testing.recording import Listener, RecordingModel

Middleware = AgentMiddleware[Any, Any, Any]
Result = Literal["content", "message", "command"]
_THREAD = {"configurable": {"thread_id": "thread"}}


class _CallId(BaseModel):
    tool_call_id: Annotated[str, InjectedToolCallId]


class Camera(BaseTool):
    """A tool that takes images.

    Attributes:
        image: What it takes.
        result: Whether it returns content blocks, a tool message, or a command that holds one.
    """

    name: str = "camera"
    description: str = "Takes an image."
    args_schema: Any = _CallId
    image: Any
    result: Result = "content"

    def _run(self, tool_call_id: str) -> Any:
        content: list[str | dict[Any, Any]] = [text_block("An image."), image_block(self.image)]
        if self.result == "content":
            return content
        message = ToolMessage(content, tool_call_id=tool_call_id, name=self.name)
        return message if self.result == "message" else Command(update={"messages": [message]})


class AgentChat:
    """An agent, and one chat with it.

    Args:
        middleware: What the agent has; None for none.
        call: Calls a method, or its async twin.
        tool: A tool that the model calls once a turn.
        **settings: Others of `create_agent`.
    """

    def __init__(
        self,
        middleware: Middleware | Sequence[Middleware] | None,
        call: Call,
        *,
        tool: BaseTool | None = None,
        **settings: Any,
    ) -> None:
        self.call = call
        self.model = RecordingModel(tool=tool.name if tool else None)
        self._settings = {"tools": [tool] if tool else [], "checkpointer": InMemorySaver(), **settings}
        self.start(middleware)

    def start(self, middleware: Middleware | Sequence[Middleware] | None) -> None:
        """Make the agent, the first time or again with other middleware: an app that is deployed anew."""
        listed = [middleware] if isinstance(middleware, AgentMiddleware) else list(middleware or ())
        self.agent: Any = create_agent(self.model, middleware=listed, **self._settings)

    def say(
        self,
        messages: Sequence[BaseMessage],
        *,
        may_raise: bool = False,
        callbacks: Sequence[Any] = (),
        thread: str = "thread",
    ) -> dict[str, Any]:
        """One turn; empty if the guard raised."""
        config = {"configurable": {"thread_id": thread}, "callbacks": list(callbacks)}
        try:
            result: dict[str, Any] = self.call(self.agent, "invoke", {"messages": list(messages)}, config)
        except UnsafeContentError:
            if not may_raise:
                raise
            return {}
        return result

    def resume(self) -> None:
        """Go on with a thread that was paused."""
        self.call(self.agent, "invoke", None, _THREAD)

    def stream(self, messages: Sequence[BaseMessage], mode: str, *, may_raise: bool = False) -> list[Any]:
        """One turn, streamed; empty if the guard raised."""
        try:
            parts: list[Any] = self.call(self.agent, "stream", {"messages": list(messages)}, _THREAD, stream_mode=mode)
        except UnsafeContentError:
            if not may_raise:
                raise
            return []
        return parts

    def state(self) -> list[BaseMessage]:
        """The messages of the latest checkpoint."""
        messages: list[BaseMessage] = self.agent.get_state(_THREAD).values["messages"]
        return messages

    def traced(self, messages: Sequence[BaseMessage], listener: Listener) -> tuple[list[dict[str, Any]], str]:
        """One turn under LangSmith tracing that goes nowhere: its spans, and all that an error says."""
        client = _Client()
        error = ""
        with tracing_context(enabled=True, client=client):
            try:
                self.say(messages, callbacks=[listener])
            except UnsafeContentError as raised:
                error = f"{raised!r} {raised} {raised.verdict!r} {raised.__context__!r} {raised.__cause__!r}"
        return client.spans, error


class _Client(Client):
    """A LangSmith client that keeps spans instead of sending them."""

    def __init__(self) -> None:
        super().__init__(api_url="http://localhost", api_key="none", auto_batch_tracing=False, info={})
        self.spans: list[dict[str, Any]] = []

    def create_run(self, name: str, inputs: dict[str, Any], run_type: Any, **kwargs: Any) -> None:
        """Keep a span's start."""
        self.spans.append({"name": name, "inputs": repr(inputs), **kwargs})

    def update_run(self, run_id: Any, **kwargs: Any) -> None:
        """Keep a span's end under its name."""
        name = next((span["name"] for span in self.spans if span.get("id") == run_id), "")
        self.spans.append({"name": name, **kwargs})
