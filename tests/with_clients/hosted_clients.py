"""The LangChain clients of hosted models, each with a server that speaks its protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel

from with_clients.provider_servers import (
    Speak,
    anthropic_messages,
    bedrock_converse,
    gemini,
    ollama_chat,
    openai,
)

_TIMEOUT_S = 20


@dataclass(frozen=True)
class HostedClient:
    """A client and the protocol it speaks.

    Attributes:
        package: The package that holds it.
        speak: The protocol.
        make: The client, given the address of a server.
    """

    package: str
    speak: Speak
    make: Callable[[str], BaseChatModel]

    def model(self, url: str) -> BaseChatModel:
        """The client of a server; skips the test where its package is not installed."""
        pytest.importorskip(self.package, reason=f"{self.package} has an environment of its own: make test-clients")
        return self.make(url)


def _openai(url: str, **settings: Any) -> BaseChatModel:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="gpt-4o", base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=_TIMEOUT_S, **settings)


def _anthropic(url: str) -> BaseChatModel:
    from langchain_anthropic import ChatAnthropic

    return ChatAnthropic(
        model="claude-sonnet-4-6", base_url=url, api_key="k", max_tokens=99, max_retries=0, timeout=_TIMEOUT_S
    )


def _gemini(url: str) -> BaseChatModel:
    from langchain_google_genai import ChatGoogleGenerativeAI

    return ChatGoogleGenerativeAI(
        model="gemini-2.5-flash", base_url=url, google_api_key="k", max_retries=1, timeout=_TIMEOUT_S, vertexai=False
    )


def _bedrock(url: str) -> BaseChatModel:
    from langchain_aws import ChatBedrockConverse

    return ChatBedrockConverse(
        model="anthropic.claude-3-5-sonnet-20241022-v2:0",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="k",
        aws_secret_access_key="s",
    )


def _mistral(url: str) -> BaseChatModel:
    from langchain_mistralai import ChatMistralAI

    return ChatMistralAI(model="pixtral-12b-2409", base_url=f"{url}/v1", api_key="k", max_retries=1, timeout=_TIMEOUT_S)


def _ollama(url: str) -> BaseChatModel:
    from langchain_ollama import ChatOllama

    return ChatOllama(model="llava", base_url=url, client_kwargs={"timeout": _TIMEOUT_S})


CLIENTS: dict[str, HostedClient] = {
    "openai chat": HostedClient("langchain_openai", openai, _openai),
    "openai Responses": HostedClient("langchain_openai", openai, lambda url: _openai(url, use_responses_api=True)),
    "anthropic": HostedClient("langchain_anthropic", anthropic_messages, _anthropic),
    "google-genai": HostedClient("langchain_google_genai", gemini, _gemini),
    "bedrock": HostedClient("langchain_aws", bedrock_converse, _bedrock),
    "mistral": HostedClient("langchain_mistralai", openai, _mistral),
    "ollama": HostedClient("langchain_ollama", ollama_chat, _ollama),
}
