"""Fixtures for tests of the LangChain integration."""

from __future__ import annotations

import asyncio
import sys

import pytest

from guardalign_guardrails.testing.colours import colour_guard
from langchain_guardalign import ImageGuard


@pytest.fixture
def guard(cache_dir) -> ImageGuard:
    return ImageGuard(colour_guard(cache_dir))


@pytest.fixture(params=["sync", "async"])
def call(request):
    """Calls a runnable's method, or its async twin."""
    if request.param == "sync":
        return lambda runnable, method, *args, **kwargs: getattr(runnable, method)(*args, **kwargs)
    return lambda runnable, method, *args, **kwargs: asyncio.run(getattr(runnable, f"a{method}")(*args, **kwargs))


@pytest.fixture
def in_context(request, call):
    """`call`, for what an agent's nodes learn of their run: on Python 3.10 LangGraph tells async ones nothing of it."""
    if "async" in request.node.callspec.id and sys.version_info < (3, 11):
        pytest.skip("LangGraph gives async nodes no context there")
    return call
