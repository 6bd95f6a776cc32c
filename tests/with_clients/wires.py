"""A hosted client, bare and guarded, and what either sends to a server that records it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import tool

from guardalign_guardrails import Guard
from langchain_guardalign import GuardedChatModel
from with_clients.hosted_clients import CLIENTS
from with_clients.provider_servers import ProviderServer, speaking


@tool
def look(where: str) -> str:
    """Look somewhere."""
    return where


@dataclass(frozen=True)
class Sent:
    """What came of a call.

    Attributes:
        body: The request as it came to the server; None if there was none.
        answer: What the model answered; None if it raised.
        error: What it raised.
    """

    body: bytes | None = field(repr=False)
    answer: AIMessage | None = None
    error: Exception | None = None


@dataclass(frozen=True, eq=False)
class Wire:
    """A client and what it sends.

    Attributes:
        name: Of the client.
        bare: The client.
        guarded: The client behind a guard.
        server: Keeps what either sends.
    """

    name: str
    bare: BaseChatModel
    guarded: GuardedChatModel
    server: ProviderServer

    def send(self, model: BaseChatModel, chat: Sequence[BaseMessage]) -> Sent:
        """Ask one of the two models, which have a tool: clients write tool results as text where there is none."""
        self.server.requests.clear()
        answer: Any = None
        error = None
        try:
            answer = model.bind_tools([look]).invoke(list(chat))
        except Exception as raised:  # noqa: BLE001  a client may raise anything
            error = raised
        bodies = [request.raw for request in self.server.requests]
        assert len(bodies) <= 1
        return Sent(bodies[0] if bodies else None, answer, error)


@contextmanager
def wired(name: str, guard: Guard) -> Iterator[Wire]:
    """A client with a server of its own until the block ends; skips the test where it is not installed."""
    client = CLIENTS[name]
    with speaking(client.speak) as server:
        bare = client.model(server.url)
        yield Wire(name, bare, GuardedChatModel(model=bare, guard=guard), server)
