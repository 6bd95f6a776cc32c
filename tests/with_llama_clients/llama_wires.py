"""An LLM of a hosted model, bare and guarded, and what either sends to a server that records it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.llm import LLM

from guardalign_guardrails import Guard
from llama_index_guardalign import GuardedLLM
from with_clients.provider_servers import ProviderServer, speaking
from with_clients.sent import Sent, sent_by
from with_llama_clients.llama_clients import LLAMA_CLIENTS


@dataclass(frozen=True, eq=False)
class LlamaWire:
    """An LLM and what it sends.

    Attributes:
        name: Of its class.
        bare: The LLM.
        guarded: The LLM behind a guard.
        server: Keeps what either sends.
    """

    name: str
    bare: LLM
    guarded: GuardedLLM
    server: ProviderServer

    def send(self, llm: LLM, chat: Sequence[ChatMessage]) -> Sent:
        """Ask one of the two LLMs."""
        return sent_by(self.server, lambda: llm.chat(list(chat)))


@contextmanager
def wired(name: str, guard: Guard) -> Iterator[LlamaWire]:
    """An LLM with a server of its own until the block ends; skips the test where it is not installed."""
    client = LLAMA_CLIENTS[name]
    with speaking(client.speak) as server:
        bare = client.llm(server.url)
        yield LlamaWire(name, bare, GuardedLLM(llm=bare, guard=guard), server)
