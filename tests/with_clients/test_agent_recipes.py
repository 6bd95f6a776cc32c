"""The recipes of the page on agents that need packages of their own: they run, and no model gets an original image."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepagents")
pytest.importorskip("langgraph_supervisor")
pytest.importorskip("langgraph_swarm")
pytest.importorskip("langchain_mcp_adapters")

from langgraph.checkpoint.memory import InMemorySaver

from doc_pages.pages import Block, blocks
from guardalign_guardrails import UnguardedWarning
from guardalign_guardrails.detection.encoders import registry
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.chats import canary
from guardalign_guardrails.testing.colours import ColourEncoder, colour_policy
from langchain_guardalign.testing.messages import question
from with_clients.agent_casts import Cast, calls, camera, numbers_seen, unmasked

USERS, TOOLS = canary("red", number=1), canary("red", number=2)
RECIPES = [block for block in blocks("docs/langchain/agents.md", "python") if block.reason is not None]
# By the name of a recipe's graph: the script of all its agents, and in how many model calls the tool's image is.
SCRIPTS = {
    "deep_agent": ([calls("task", description="Take one.", subagent_type="general-purpose"), calls("camera")], 1),
    "supervised": ([calls("transfer_to_photographer"), calls("camera")], 2),
    "swarm": ([calls("camera"), calls("transfer_to_bob")], 2),
    "mcp_agent": ([calls("camera")], 1),
}


def graph_of(block: Block) -> str:
    """The name of a recipe's graph."""
    (name,) = [name for name in SCRIPTS if f"\n{name} = " in f"\n{block.code}"]
    return name


def test_every_graph_has_a_recipe():
    assert sorted(map(graph_of, RECIPES)) == sorted(SCRIPTS)


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
@pytest.mark.parametrize("block", RECIPES, ids=graph_of)
def test_no_model_of_a_recipe_gets_an_original(block, monkeypatch, tmp_path):
    script, times = SCRIPTS[graph_of(block)]
    monkeypatch.setitem(registry._PREFIXES, "offline", lambda rest, options: ColourEncoder())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text(colour_policy().to_yaml(), encoding="utf-8")
    (tmp_path / "image.png").write_bytes(encode_png(TOOLS))
    shutil.copy(Path(__file__).with_name("mcp_camera.py"), tmp_path)
    model = Cast(script=list(script))
    names: dict[str, Any] = {"model": model, "tools": [camera(TOOLS)], "checkpointer": InMemorySaver()}

    async def run() -> Any:
        result = eval(block.compiled(), names)
        if inspect.iscoroutine(result):
            await result
        config = {"configurable": {"thread_id": "recipe"}}
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnguardedWarning)
            return await names[graph_of(block)].ainvoke({"messages": question(USERS)}, config)

    state = asyncio.run(run())
    assert state["messages"][-1].text == "one two three"
    assert model.script == []
    seen = numbers_seen(model)
    assert [2 in numbers for numbers in seen].count(True) == times
    assert any(1 in numbers for numbers in seen)
    assert unmasked(model, USERS, TOOLS) == []
