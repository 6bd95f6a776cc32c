"""Tools of a real MCP server over stdio: what the model, the state and apps that read artifacts get of its images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_mcp_adapters")

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_mcp_adapters.client import MultiServerMCPClient
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.chats import canary
from guardalign_guardrails.testing.colours import colour_guard
from langchain_guardalign import GuardAlignMiddleware, GuardedChatModel
from langchain_guardalign.testing.messages import images_of
from with_clients.agent_casts import Cast, calls, holds_original, numbers_seen, unmasked

SERVER = Path(__file__).with_name("mcp_camera.py")
THREAD = {"configurable": {"thread_id": "thread"}}


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


async def mcp_tools(image: Any, folder: Path) -> list[Any]:
    """The tools of a server that takes this image."""
    (path := folder / "image.png").write_bytes(encode_png(image))
    started = {"transport": "stdio", "command": sys.executable, "args": [str(SERVER), str(path)]}
    return await MultiServerMCPClient({"camera": started}).get_tools()


def tool_message(state: Any) -> ToolMessage:
    (message,) = [each for each in state["messages"] if isinstance(each, ToolMessage)]
    return message


async def test_middleware_masks_what_the_server_sends_for_the_model_the_state_and_the_artifact(guard, tmp_path):
    image, model, saver = canary("red", number=3), Cast(script=[calls("camera")]), InMemorySaver()
    tools = await mcp_tools(image, tmp_path)
    agent = create_agent(model, tools, middleware=[GuardAlignMiddleware(guard)], checkpointer=saver)
    state = await agent.ainvoke({"messages": [HumanMessage("Take an image.")]}, THREAD)
    assert numbers_seen(model)[1] == [3]
    assert unmasked(model, image) == []
    artifact = tool_message(state).artifact["structured_content"]
    assert (artifact["of"], artifact["files"][0]["name"]) == ("the sky", "sky.png")
    assert artifact["image"] == artifact["files"][0]["data"] == tool_message(state).content[1]["base64"]
    assert not holds_original([state, saver.storage, saver.writes, saver.blobs], image)


async def test_a_blocked_image_of_the_server_is_a_notice_and_its_neighbours_stay(guard, tmp_path):
    image, model = canary("blue", number=4), Cast(script=[calls("camera")])
    agent = create_agent(model, await mcp_tools(image, tmp_path), middleware=[GuardAlignMiddleware(guard)])
    state = await agent.ainvoke({"messages": [HumanMessage("Take an image.")]})
    message = tool_message(state)
    assert [block["text"] for block in message.content] == ["Click.", NOTICE]
    content = message.artifact["structured_content"]
    assert content == {"of": "the sky", "image": NOTICE, "files": [{"name": "sky.png", "data": NOTICE}]}
    assert len(model.received) == 2
    assert not holds_original(state, image)


async def test_a_wrapped_model_gets_masked_images_and_leaves_the_state_as_it_came(guard, tmp_path):
    image, model = canary("red", number=5), Cast(script=[calls("camera")])
    agent = create_agent(GuardedChatModel(model=model, guard=guard), await mcp_tools(image, tmp_path))
    state = await agent.ainvoke({"messages": [HumanMessage("Take an image.")]})
    assert numbers_seen(model)[1] == [5]
    assert unmasked(model, image) == []
    assert holds_original(state, image)


async def test_a_tool_node_of_its_tools_is_guarded_by_the_wrapper(guard, tmp_path):
    image, own = canary("red", number=6), GuardAlignMiddleware(guard)
    node = ToolNode(await mcp_tools(image, tmp_path), awrap_tool_call=own.awrap_tool_call)
    graph: Any = StateGraph(MessagesState).add_node("tools", node).add_edge(START, "tools").compile()
    state = await graph.ainvoke({"messages": [calls("camera")]})
    assert len(images_of([tool_message(state)])) == 1
    assert not holds_original(state, image)
