"""The same conversation through each adapter: what arrived at the model, and what the app was told."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
from conversations import PREFIX, Attached, Said, as_chat, as_items
from PIL import Image, UnidentifiedImageError

from guardalign_guardrails import Guard, UnsafeContentError
from guardalign_guardrails.content.payload import to_base64
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE


@dataclass(frozen=True)
class Run:
    """One conversation.

    Attributes:
        images: Pixels of the images that arrived, in order; None if nobody was asked.
        sent: All that arrived, as text.
        answer: What the app displays; None where an adapter cannot answer.
    """

    images: list[bytes] | None
    sent: str = ""
    answer: str | None = None

    @property
    def prefixes(self) -> int:
        """How often the safety prefix arrived."""
        return self.sent.count(PREFIX)

    @property
    def notices(self) -> int:
        """How many notices arrived in the place of content."""
        return self.sent.count(NOTICE) + self.sent.count(UNCHECKED_NOTICE)


Adapter: TypeAlias = Callable[[Guard, list[Said]], Run]


def langchain(guard: Guard, conversation: list[Said]) -> Run:
    """`GuardedChatModel`, told v1 blocks."""
    pytest.importorskip("langchain_core")
    from langchain_guardalign import GuardedChatModel
    from with_langchain.chat_images import RecordingModel

    model = RecordingModel.make()
    answer = GuardedChatModel(model=model, guard=guard).invoke(_langchain_messages(conversation))
    given = [message.content for message in model.received[0]] if model.received else None
    return _run(given, answer.content)


def langchain_agent(guard: Guard, conversation: list[Said]) -> Run:
    """`GuardAlignMiddleware`, in an agent."""
    pytest.importorskip("langchain")
    from langchain.agents import create_agent

    from langchain_guardalign import GuardAlignMiddleware
    from with_langchain.chat_images import RecordingModel

    model = RecordingModel.make()
    agent = create_agent(model, [], middleware=[GuardAlignMiddleware(guard)])
    answer = agent.invoke({"messages": _langchain_messages(conversation)})["messages"][-1]
    given = [message.content for message in model.received[0]] if model.received else None
    return _run(given, answer.content)


def llama_index(guard: Guard, conversation: list[Said]) -> Run:
    """`GuardedLLM`, told image and document blocks."""
    pytest.importorskip("llama_index.core")
    from llama_index.core.base.llms.types import ChatMessage, DocumentBlock, ImageBlock, TextBlock

    from llama_index_guardalign import GuardedLLM
    from with_llama_index.llama_models import RecordingLLM

    def block(part: Any) -> Any:
        if isinstance(part, str):
            return TextBlock(text=str(part))
        if isinstance(part, Attached):
            return DocumentBlock(data=part.data, document_mimetype="text/plain")
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
    answer = GuardedLLM(llm=llm, guard=guard).chat(messages)
    given = [message.model_dump(mode="json") for message in llm.received[0]] if llm.received else None
    return _run(given, answer.message.content)


def openai_chat(guard: Guard, conversation: list[Said]) -> Run:
    """The OpenAI client, chat completions, over real HTTP."""
    return _openai(guard, "chat", {"messages": as_chat(conversation)})


def openai_responses(guard: Guard, conversation: list[Said]) -> Run:
    """The OpenAI client, Responses, over real HTTP."""
    return _openai(guard, "responses", {"input": as_items(conversation)})


def openai_agents(guard: Guard, conversation: list[Said]) -> Run:
    """The input filter of openai-agents, which raises where others refuse."""
    pytest.importorskip("agents")
    from agents import Agent
    from agents.run import CallModelData, ModelInputData

    from openai_guardalign.agents import input_filter

    given = ModelInputData(input=as_items(conversation), instructions=None)
    data = CallModelData(model_data=given, agent=Agent(name="a"), context=None)
    try:
        passed = asyncio.run(input_filter(guard, on_violation="raise")(data))
    except UnsafeContentError:
        return Run(None)
    return _run([passed.instructions, passed.input], None)


def litellm_chat(guard: Guard, conversation: list[Said]) -> Run:
    """LiteLLM's hook before a call, chat completions."""
    return _litellm(guard, "acompletion", {"messages": as_chat(conversation)})


def litellm_responses(guard: Guard, conversation: list[Said]) -> Run:
    """LiteLLM's hook before a call, Responses."""
    return _litellm(guard, "aresponses", {"input": as_items(conversation)})


ADAPTERS: list[Adapter] = [
    langchain,
    langchain_agent,
    llama_index,
    openai_chat,
    openai_responses,
    openai_agents,
    litellm_chat,
    litellm_responses,
]


def _langchain_messages(conversation: list[Said]) -> list[Any]:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

    def block(part: Any) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": str(part)}
        if isinstance(part, Attached):
            return {"type": "file", "base64": to_base64(part.data), "mime_type": "text/plain"}
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
    return messages


def _openai(guard: Guard, api: str, arguments: dict[str, Any]) -> Run:
    pytest.importorskip("openai")
    from openai_guardalign import guard_client
    from with_langchain.openai_server import serving
    from with_openai.openai_ways import client_of

    with serving() as server:
        client = guard_client(client_of(server), guard)
        if api == "chat":
            answer = client.chat.completions.create(model="gpt-4o", **arguments).choices[0].message.content
        else:
            answer = client.responses.create(model="gpt-4o", **arguments).output_text
        return _run(server.requests[0].body if server.requests else None, answer)


def _litellm(guard: Guard, call: str, body: dict[str, Any]) -> Run:
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
    except ModifyResponseException as refused:
        return Run(None, answer=refused.message)
    except GuardrailRaisedException:
        return Run(None)
    return _run([passed.get("messages"), passed.get("instructions"), passed.get("input")], None)


def _run(sent: Any, answer: str | None) -> Run:
    """What arrived, read without the package's own readers."""
    if sent is None:
        return Run(None, answer=answer)
    text = json.dumps(sent, default=str)
    found = re.findall(r"\"(?:data:[^,\"]*,)?([A-Za-z0-9+/]{60,}={0,2})\"", text)
    return Run([pixels for data in found if (pixels := _pixels(base64.b64decode(data))) is not None], text, answer)


def _pixels(data: bytes) -> bytes | None:
    """The pixels of an image; None if it is another file."""
    try:
        return Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    except UnidentifiedImageError:
        return None
