"""What a newcomer meets: the shipped policy, an image behind a URL and a PDF, through each ecosystem's quick start.

Nobody is asked; the answer, which users and attackers read, says only that something could not be checked; what
developers read says how it can be.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from guardalign_guardrails import Guard, Policy, UnsafeContentError
from guardalign_guardrails.content.screen import UNCHECKED_NOTICE

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

ROOT = Path(__file__).parents[2]
URL = "https://example.com/photo.png"
PDF = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.7\n" + bytes(100)).decode()
REFUSAL = Policy.default().refusal_unchecked
WAYS = {"URL": "fetch.allowed_hosts", "PDF": "of a PDF its pages"}
PAGES = ["docs/langchain/hosted-models.md", "docs/llama-index/hosted-models.md", "docs/openai.md", "docs/litellm.md"]
# What nobody but the developer is to read.
SECRETS = ("fetch", "failure.", "remote_reference", "unsupported", "PDF", "allow", "base64")


@pytest.fixture(params=list(WAYS))
def sent(request) -> str:
    return request.param


@pytest.fixture
def told(sent, caplog):
    """Checks the answer that users read, and what developers read."""
    caplog.set_level(logging.WARNING)

    def check(answer: str, record: Any) -> None:
        assert answer == REFUSAL
        assert not any(secret in answer for secret in SECRETS)
        assert WAYS[sent] in str(record)
        assert WAYS[sent] in caplog.text

    return check


def chat_block(sent: str) -> dict[str, Any]:
    if sent == "URL":
        return {"type": "image_url", "image_url": {"url": URL}}
    return {"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}}


def item_block(sent: str) -> dict[str, Any]:
    if sent == "URL":
        return {"type": "input_image", "image_url": URL}
    return {"type": "input_file", "filename": "a.pdf", "file_data": PDF}


def test_langchain(sent, told):
    pytest.importorskip("langchain_core")
    from langchain_core.messages import HumanMessage

    from langchain_guardalign import GuardedChatModel
    from with_langchain.chat_images import RecordingModel

    model = RecordingModel.make()
    answer = GuardedChatModel(model=model).invoke([HumanMessage([chat_block(sent)])])
    assert not model.received
    told(answer.content, answer.response_metadata["guardalign"])


def test_a_langchain_agent(sent, told):
    pytest.importorskip("langchain")
    from langchain.agents import create_agent

    from langchain_guardalign import GuardAlignMiddleware
    from with_langchain.chat_images import RecordingModel

    model = RecordingModel.make()
    agent = create_agent(model, [], middleware=[GuardAlignMiddleware()])
    answer = agent.invoke({"messages": [{"role": "user", "content": [chat_block(sent)]}]})["messages"][-1]
    assert not model.received
    told(answer.content, answer.response_metadata["guardalign"])


def test_llama_index(sent, told):
    pytest.importorskip("llama_index.core")
    from llama_index.core.base.llms.types import ChatMessage, DocumentBlock, ImageBlock

    from llama_index_guardalign import GuardedLLM
    from with_llama_index.llama_models import RecordingLLM

    pdf = base64.b64decode(PDF.partition(",")[2])
    block = ImageBlock(url=URL) if sent == "URL" else DocumentBlock(data=pdf, document_mimetype="application/pdf")
    llm = RecordingLLM()
    answer = GuardedLLM(llm=llm).chat([ChatMessage(role="user", blocks=[block])])
    assert not llm.received
    told(answer.message.content, answer.additional_kwargs["guardalign"])


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_openais_client(sent, told, api):
    pytest.importorskip("openai")
    from openai_guardalign import guard_client
    from with_langchain.openai_server import serving
    from with_openai.openai_ways import client_of

    with serving() as server:
        client = guard_client(client_of(server))
        if api == "chat":
            chat = [{"role": "user", "content": [chat_block(sent)]}]
            answer = client.chat.completions.create(model="gpt-4o", messages=chat)
            text = answer.choices[0].message.content
        else:
            answer = client.responses.create(model="gpt-4o", input=[{"role": "user", "content": [item_block(sent)]}])
            text = answer.output_text
        assert not server.requests
    told(text, answer.guardalign)


def test_openai_agents(sent, caplog):
    pytest.importorskip("agents")
    from agents import Agent
    from agents.run import CallModelData, ModelInputData

    from openai_guardalign.agents import input_filter

    def filtered(**settings: Any) -> ModelInputData:
        given = ModelInputData(input=[{"role": "user", "content": [item_block(sent)]}], instructions=None)
        data = CallModelData(model_data=given, agent=Agent(name="a"), context=None)
        return asyncio.run(input_filter(**settings)(data))

    # A filter cannot answer: the model reads a notice, or the run ends.
    assert filtered().input == [{"role": "user", "content": [{"type": "input_text", "text": UNCHECKED_NOTICE}]}]
    assert WAYS[sent] in caplog.text
    with pytest.raises(UnsafeContentError, match=WAYS[sent]):
        filtered(on_violation="raise")


def test_litellm(sent, caplog):
    pytest.importorskip("litellm", reason="litellm has an environment of its own: make test-litellm")
    from litellm.caching import DualCache
    from litellm.integrations.custom_guardrail import ModifyResponseException
    from litellm.proxy._types import UserAPIKeyAuth

    from litellm_guardalign import ImageGuardrail

    hook = ImageGuardrail(guardrail_name="images", event_hook="pre_call", default_on=True)
    data = {"model": "gpt-4o", "metadata": {}, "messages": [{"role": "user", "content": [chat_block(sent)]}]}
    with pytest.raises(ModifyResponseException) as refused:
        asyncio.run(hook.async_pre_call_hook(UserAPIKeyAuth(), DualCache(), data, "acompletion"))
    assert refused.value.message == REFUSAL
    assert WAYS[sent] in caplog.text
    assert WAYS[sent] in json.dumps(data["metadata"], default=str)


@pytest.mark.parametrize("page", PAGES)
def test_page_one_of_each_ecosystem_says_what_the_shipped_policy_does(page):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    section = text.partition("## What the shipped policy does")[2].partition(" ## ")[0]
    policy = Policy.default()
    assert f"more than {policy.masking.max_coverage:.0%}".replace("%", " %") in section
    assert policy.thresholds.block is None
    assert policy.thresholds.route is None
    assert policy.masking.escalate_to == "block"
    assert policy.failure.uninspectable == "block"
    assert "Nothing is routed." in section
    assert section.index("fetch") < section.index("`failure.uninspectable: allow`")


def test_the_example_blocks_and_routes_and_the_guard_takes_it():
    policy = Policy.load(ROOT / "examples/policy.yaml")
    assert policy.categories["sexual_content"].thresholds.block == 0.02
    assert policy.masking.escalate_to == "route"
    assert Guard(policy).policy is policy
