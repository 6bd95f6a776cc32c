"""LlamaIndex's LLM classes of hosted models, each with the protocol that its server speaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from with_clients.provider_servers import Speak, anthropic_messages, bedrock_converse, gemini, ollama_chat, openai

if TYPE_CHECKING:
    from llama_index.core.llms.llm import LLM

_TIMEOUT_S = 20


@dataclass(frozen=True)
class LlamaClient:
    """An LLM class and the protocol it speaks.

    Attributes:
        package: The package that holds it, below ``llama_index.llms``.
        speak: The protocol.
        make: An LLM, given the address of a server.
    """

    package: str
    speak: Speak
    make: Callable[[str], LLM]

    def llm(self, url: str) -> LLM:
        """The LLM of a server; skips the test where its package is not installed."""
        name = f"llama-index-llms-{self.package.replace('_', '-')}"
        reason = f"{name} has an environment of its own: make test-llama-clients"
        pytest.importorskip(f"llama_index.llms.{self.package}", reason=reason)
        return self.make(url)


def _openai(url: str) -> LLM:
    from llama_index.llms.openai import OpenAI

    return OpenAI(model="gpt-4o", api_base=f"{url}/v1", api_key="k", max_retries=0, timeout=_TIMEOUT_S)


def _responses(url: str) -> LLM:
    from llama_index.llms.openai import OpenAIResponses

    return OpenAIResponses(model="gpt-4o", api_base=f"{url}/v1", api_key="k", max_retries=0, timeout=_TIMEOUT_S)


def _anthropic(url: str) -> LLM:
    from llama_index.llms.anthropic import Anthropic

    return Anthropic(model="claude-sonnet-4-6", base_url=url, api_key="k", max_retries=0, timeout=_TIMEOUT_S)


def _gemini(url: str) -> LLM:
    from google.genai.types import HttpOptions
    from llama_index.llms.google_genai import GoogleGenAI

    # With both sizes given it asks for no description of the model.
    return GoogleGenAI(
        model="gemini-2.5-flash",
        api_key="k",
        http_options=HttpOptions(base_url=url),
        max_tokens=99,
        context_window=9999,
        max_retries=1,
    )


def _bedrock(url: str) -> LLM:
    from llama_index.llms.bedrock_converse import BedrockConverse

    return BedrockConverse(
        model="anthropic.claude-3-5-sonnet-20241022-v2:0",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="k",
        aws_secret_access_key="s",
        max_retries=1,
    )


def _mistral(url: str) -> LLM:
    from llama_index.llms.mistralai import MistralAI

    return MistralAI(model="pixtral-12b-2409", endpoint=url, api_key="k", max_retries=1, timeout=_TIMEOUT_S)


def _ollama(url: str) -> LLM:
    from llama_index.llms.ollama import Ollama

    return Ollama(model="llava", base_url=url, request_timeout=_TIMEOUT_S, context_window=9999)


LLAMA_CLIENTS: dict[str, LlamaClient] = {
    "OpenAI": LlamaClient("openai", openai, _openai),
    "OpenAIResponses": LlamaClient("openai", openai, _responses),
    "Anthropic": LlamaClient("anthropic", anthropic_messages, _anthropic),
    "GoogleGenAI": LlamaClient("google_genai", gemini, _gemini),
    "BedrockConverse": LlamaClient("bedrock_converse", bedrock_converse, _bedrock),
    "MistralAI": LlamaClient("mistralai", openai, _mistral),
    "Ollama": LlamaClient("ollama", ollama_chat, _ollama),
}
