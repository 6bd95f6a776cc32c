"""A hosted client, bare and guarded, and what either sends to a server that records it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.tools import tool

from guardalign_guardrails import Guard
from langchain_guardalign import GuardedChatModel
from with_clients.hosted_clients import CLIENTS
from with_clients.provider_servers import ProviderServer, speaking
from with_clients.sent import Sent, sent_by


@tool
def look(where: str) -> str:
    """Look somewhere."""
    return where


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
        return sent_by(self.server, lambda: model.bind_tools([look]).invoke(list(chat)))


@contextmanager
def wired(name: str, guard: Guard) -> Iterator[Wire]:
    """A client with a server of its own until the block ends; skips the test where it is not installed."""
    client = CLIENTS[name]
    with speaking(client.speak) as server:
        bare = client.model(server.url)
        yield Wire(name, bare, GuardedChatModel(model=bare, guard=guard), server)
