"""An agent whose tool returns images: each is checked before it enters the agent's state, and masked if need be.

The model is a small local stand-in that calls the tool and says what it received; put any chat model with tools in its
place. Runs without network, GPU or API key. Run: ``python examples/agent_with_image_tool.py``.
"""

from __future__ import annotations

import base64
import logging
import mimetypes
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch and transformers are imported: a demo has no use for their progress bars and advice.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")
logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

from demo_model import ReportingModel  # noqa: E402
from langchain.agents import create_agent  # noqa: E402
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage  # noqa: E402
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult  # noqa: E402
from langchain_core.tools import tool  # noqa: E402
from langgraph.checkpoint.memory import InMemorySaver  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402

from guardalign_guardrails import Guard  # noqa: E402
from langchain_guardalign import GuardAlignMiddleware  # noqa: E402

HERE = Path(__file__).parent


@tool
def camera(place: str) -> list[dict[str, Any]]:
    """Take an image of a place.

    Args:
        place: One of coffee, drill, coffee_and_pistol, rifle.
    """
    (path,) = (HERE / "images").glob(f"{place}.*")
    encoded = base64.b64encode(path.read_bytes()).decode()
    image = {"type": "image", "base64": encoded, "mime_type": mimetypes.guess_type(path.name)[0]}
    return [{"type": "text", "text": f"The camera at {place}:"}, image]


class ToolCaller(ReportingModel):
    """Calls the camera for the place that the user's last word names, then says what it received."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        """Tools are known by name here."""
        return self

    def _call(self, messages: list[BaseMessage]) -> AIMessage | None:
        if isinstance(messages[-1], ToolMessage):
            return None
        place = str(messages[-1].content).split()[-1].strip("?.")
        return AIMessage("", tool_calls=[{"name": "camera", "args": {"place": place}, "id": f"call-{len(messages)}"}])

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        call = self._call(messages)
        if call is not None:
            return ChatResult(generations=[ChatGeneration(message=call)])
        return super()._generate(messages[-1:], *args, **kwargs)

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        call = self._call(messages)
        if call is not None:
            yield ChatGenerationChunk(message=AIMessageChunk("", tool_calls=call.tool_calls))
            return
        yield from super()._stream(messages[-1:], *args, **kwargs)


def main() -> None:
    console = Console()
    guard = Guard(HERE / "policy.yaml")
    with console.status("Loading the offline encoder and the policy's anchors"):
        guard.prepare()
    agent = create_agent(
        ToolCaller(),
        [camera],
        system_prompt="You watch the cameras.",
        middleware=[GuardAlignMiddleware(guard)],
        checkpointer=InMemorySaver(),
    )
    thread = {"configurable": {"thread_id": "1"}}
    for place in ("coffee", "coffee_and_pistol", "rifle"):
        console.print(f"[bold]you[/] What is at {place}?", highlight=False)
        asked = {"messages": [HumanMessage(f"What is at {place}?")]}
        for mode, data in agent.stream(asked, thread, stream_mode=["custom", "updates"]):
            if mode == "custom":
                console.print(f"[dim]verdict: {data['action']}[/]", highlight=False)
            elif "model" in data and data["model"]["messages"][-1].content:
                console.print(f"[bold]agent[/] {escape(data['model']['messages'][-1].content)}", highlight=False)
    kept = agent.get_state(thread).values["messages"]
    actions = [finding["action"] for message in kept for finding in message.response_metadata.get("guardalign", [])]
    console.print(f"\nIn the agent's memory, for every later turn: {len(kept)} messages, findings {actions}")


if __name__ == "__main__":
    main()
