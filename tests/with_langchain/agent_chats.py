"""An agent with a guard in it, a chat with it, and tools that return images."""

from __future__ import annotations

from typing import Any

from chat_images import text, v1
from langchain.agents import create_agent
from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from PIL import Image

from langchain_guardalign.testing.messages import Call, call_sync
from langchain_guardalign.testing.recording import RecordingModel

THREAD = {"configurable": {"thread_id": "thread"}}


class Chat:
    """One thread with one agent; `model` keeps what it is given."""

    def __init__(
        self,
        *middleware: Any,
        call: Call = call_sync,
        tool: BaseTool | None = None,
        model: RecordingModel | None = None,
        **settings: Any,
    ) -> None:
        self.call = call
        self.model = model or RecordingModel(tool=tool.name if tool else None)
        self.saver = InMemorySaver()
        self.agent: Any = create_agent(
            self.model, [tool] if tool else [], middleware=list(middleware), checkpointer=self.saver, **settings
        )

    def say(self, *messages: BaseMessage | str, **arguments: Any) -> list[BaseMessage]:
        """One turn; the state's messages after it."""
        said = [HumanMessage(each) if isinstance(each, str) else each for each in messages]
        return self.call(self.agent, "invoke", {"messages": said}, THREAD, **arguments)["messages"]

    def stream(self, *messages: BaseMessage, mode: Any, config: dict[str, Any] | None = None) -> list[Any]:
        """One turn, streamed."""
        given = {"messages": list(messages)}
        return self.call(self.agent, "stream", given, {**THREAD, **(config or {})}, stream_mode=mode)

    @property
    def state(self) -> list[BaseMessage]:
        """The messages of the latest checkpoint."""
        return self.agent.get_state(THREAD).values["messages"]


def camera(*images: Image.Image, **settings: Any) -> BaseTool:
    """A tool that returns images as content blocks."""

    def camera() -> list[Any]:
        """Take images."""
        return [text("Click."), *map(v1, images)]

    return StructuredTool.from_function(camera, **settings)


def tool_messages(messages: list[BaseMessage]) -> list[ToolMessage]:
    return [message for message in messages if isinstance(message, ToolMessage)]


def kinds(messages: list[BaseMessage]) -> list[str]:
    return [message.type for message in messages]
