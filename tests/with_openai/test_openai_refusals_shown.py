"""Frameworks over a guarded client show its refusal where they show a model's answer."""

from __future__ import annotations

import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from openai_ways import REFUSAL, chat_block, client_of

from guardalign_guardrails.testing.colours import painted
from openai_guardalign import guard_client

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

BLOCKED = [HumanMessage([{"type": "text", "text": "What?"}, chat_block(painted("blue"))])]


@pytest.fixture(params=["chat", "responses"])
def model(request, plain, server, checks) -> ChatOpenAI:
    """LangChain's model, with guarded clients for its own."""
    client, async_client = guard_client(plain, checks), guard_client(client_of(server, AsyncOpenAI), checks)
    return ChatOpenAI(
        model="gpt-4o",
        api_key="test",
        use_responses_api=request.param == "responses",
        root_client=client,
        client=client.chat.completions,
        root_async_client=async_client,
        async_client=async_client.chat.completions,
    )


def test_langchain_does(model, server):
    assert model.invoke(BLOCKED).text == REFUSAL
    assert "".join(chunk.text for chunk in model.stream(BLOCKED)) == REFUSAL
    assert server.requests == []


async def test_so_it_does_in_async_code(model, server):
    assert (await model.ainvoke(BLOCKED)).text == REFUSAL
    assert "".join([chunk.text async for chunk in model.astream(BLOCKED)]) == REFUSAL
    assert server.requests == []
