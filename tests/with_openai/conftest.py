"""Fixtures for tests of the OpenAI integration."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI
from openai_ways import APIS, Way, client_of, every_way

from guardalign_guardrails import Guard
from guardalign_guardrails.testing.colours import colour_guard
from with_langchain.openai_server import OpenAIServer, serving


@pytest.fixture
def checks(cache_dir) -> Guard:
    return colour_guard(cache_dir)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with serving() as server:
        yield server


@pytest.fixture(params=every_way(), ids=str)
def way(request) -> Way:
    return request.param


@pytest.fixture(params=APIS)
def simple(request) -> Way:
    """The plainest way of each API."""
    return Way(request.param, "create", is_async=False)


@pytest.fixture
def plain(server) -> OpenAI:
    """A client that nobody guards."""
    return client_of(server)
