"""The same conversation through each adapter: whether it was refused, and the images that arrived."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from conversations import Said, as_chat, as_items
from PIL import Image

from guardalign_guardrails import Guard, UnsafeContentError

Arrived: TypeAlias = list[bytes] | None
"""Pixels of the images that arrived, in order; None if nobody was asked."""

Adapter: TypeAlias = Callable[[Guard, list[Said]], Arrived]


def langchain(guard: Guard, conversation: list[Said]) -> Arrived:
    """`GuardedChatModel`, told v1 blocks."""
    pytest.importorskip("langchain_core")
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

    from langchain_guardalign import GuardedChatModel
    from with_langchain.chat_images import RecordingModel, text

    def block(part: Any) -> dict[str, Any]:
        if isinstance(part, str):
            return text(part)
        if part.is_whole:
            return {"type": "image", "base64": part.base64, "mime_type": part.mime}
        return {"type": "image", "url": part.data_url}

    messages: list[Any] = []
    for role, parts in conversation:
        content: Any = [block(part) for part in parts]
        if role == "tool":
            messages.append(AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "call1"}]))
            messages.append(ToolMessage(content, tool_call_id="call1"))
        else:
            kind = {"user": HumanMessage, "assistant": AIMessage, "system": SystemMessage}[role]
            messages.append(kind(content))
    model = RecordingModel.make()
    GuardedChatModel(model=model, guard=guard).invoke(messages)
    return _opened([message.content for message in model.received[0]]) if model.received else None


def llama_index(guard: Guard, conversation: list[Said]) -> Arrived:
    """`GuardedLLM`, told image blocks."""
    pytest.importorskip("llama_index.core")
    from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock

    from llama_index_guardalign import GuardedLLM
    from with_llama_index.llama_models import RecordingLLM

    def block(part: Any) -> Any:
        if isinstance(part, str):
            return TextBlock(text=part)
        return ImageBlock(image=part.data) if part.is_whole else ImageBlock(url=part.data_url)

    messages = [
        ChatMessage(
            role=role,
            blocks=[block(part) for part in parts],
            additional_kwargs={"tool_call_id": "call1"} if role == "tool" else {},
        )
        for role, parts in conversation
    ]
    llm = RecordingLLM()
    GuardedLLM(llm=llm, guard=guard).chat(messages)
    if not llm.received:
        return None
    return [_pixels(image) for image in llm.images]


def openai_chat(guard: Guard, conversation: list[Said]) -> Arrived:
    """The OpenAI client, chat completions, over real HTTP."""
    return _openai(guard, "chat", {"messages": as_chat(conversation)})


def openai_responses(guard: Guard, conversation: list[Said]) -> Arrived:
    """The OpenAI client, Responses, over real HTTP."""
    return _openai(guard, "responses", {"input": as_items(conversation)})


def openai_agents(guard: Guard, conversation: list[Said]) -> Arrived:
    """The input filter of openai-agents."""
    pytest.importorskip("agents")
    from agents import Agent
    from agents.run import CallModelData, ModelInputData

    from openai_guardalign.agents import input_filter

    given = ModelInputData(input=as_items(conversation), instructions=None)
    data = CallModelData(model_data=given, agent=Agent(name="a"), context=None)
    try:
        passed = asyncio.run(input_filter(guard, on_violation="raise")(data))
    except UnsafeContentError:
        return None
    return _opened(passed.input)


def litellm_chat(guard: Guard, conversation: list[Said]) -> Arrived:
    """LiteLLM's hook before a call, chat completions."""
    return _litellm(guard, "acompletion", {"messages": as_chat(conversation)})


def litellm_responses(guard: Guard, conversation: list[Said]) -> Arrived:
    """LiteLLM's hook before a call, Responses."""
    return _litellm(guard, "aresponses", {"input": as_items(conversation)})


ADAPTERS: list[Adapter] = [
    langchain,
    llama_index,
    openai_chat,
    openai_responses,
    openai_agents,
    litellm_chat,
    litellm_responses,
]


def _openai(guard: Guard, api: str, arguments: dict[str, Any]) -> Arrived:
    pytest.importorskip("openai")
    from openai_guardalign import guard_client
    from with_langchain.openai_server import serving
    from with_openai.openai_ways import client_of

    with serving() as server:
        client = guard_client(client_of(server), guard)
        create = client.chat.completions.create if api == "chat" else client.responses.create
        create(model="gpt-4o", **arguments)
        return _opened(server.requests[0].body) if server.requests else None


def _litellm(guard: Guard, call: str, body: dict[str, Any]) -> Arrived:
    pytest.importorskip("litellm", reason="litellm has an environment of its own: make test-litellm")
    from litellm.caching import DualCache
    from litellm.exceptions import GuardrailRaisedException
    from litellm.integrations.custom_guardrail import CustomGuardrail, ModifyResponseException
    from litellm.proxy._types import UserAPIKeyAuth

    from litellm_guardalign import ImageGuardrail
    from litellm_guardalign.settings import GuardrailSettings

    # Settings name a guard; this one is made already.
    hook = ImageGuardrail.__new__(ImageGuardrail)
    CustomGuardrail.__init__(hook, guardrail_name="images", default_on=True)
    hook.settings, hook.guard = GuardrailSettings(), guard
    data = {"model": "gpt-4o", "metadata": {}, **json.loads(json.dumps(body))}
    try:
        passed = asyncio.run(hook.async_pre_call_hook(UserAPIKeyAuth(), DualCache(), data, call))
    except (GuardrailRaisedException, ModifyResponseException):
        return None
    return _opened([passed.get("messages"), passed.get("input")])


def _opened(value: Any) -> list[bytes]:
    """Pixels of all images in plain data, in order, without the package's own readers."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    found = re.findall(r"(?:data:image/(?:png|jpeg);base64,|\"base64\": \")([A-Za-z0-9+/=]{40,})", text)
    return [_pixels(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def _pixels(image: Image.Image) -> bytes:
    return image.convert("RGB").tobytes()
