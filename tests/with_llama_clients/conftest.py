"""Fixtures for tests with LlamaIndex's LLM classes of hosted models."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from guardalign_guardrails import Guard
from guardalign_guardrails.testing.colours import colour_guard
from with_clients.made_once import made_once
from with_llama_clients.llama_wires import LlamaWire, wired


@pytest.fixture(scope="session")
def colours(cache_dir) -> Guard:
    return colour_guard(cache_dir)


@pytest.fixture(scope="session")
def llama_wire_of(colours) -> Iterator[Callable[[str], LlamaWire]]:
    """LLMs by name; each is made when a test first asks for it."""
    with made_once(lambda name: wired(name, colours)) as wire:
        yield wire


@pytest.fixture
def wire(request, llama_wire_of) -> LlamaWire:
    """The LLM that a test is parametrized with."""
    return llama_wire_of(request.param)


@pytest.fixture
def fresh(request, colours) -> Iterator[LlamaWire]:
    """The same, made anew: async clients belong to one event loop."""
    with wired(request.param, colours) as wire:
        yield wire
