"""Messages that nobody would write: whatever their shape, the guard keeps its manners."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue

from guardalign_guardrails.content.dialect import LOCATORS, MIME_KEYS
from guardalign_guardrails.content.walk import find
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import colour_guard, painted
from langchain_guardalign import ImageGuard

sys.path.append(str(Path(__file__).parents[1] / "content"))
from block_matrix import ELSEWHERE, READABLE, UNREADABLE

IMAGES = [encode_png(painted(*colours)) for colours in ([], ["red"], ["blue"], ["green"], ["magenta"])]
KEYS = [*LOCATORS, *MIME_KEYS, "type", "text", "content", "detail", "extras", "image_bytes", "output", "value", "id"]
TYPES = ["text", "image", "image_url", "input_image", "media", "file", "document", "tool_result", "novel", "tool_use"]

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.sampled_from(IMAGES),
    st.sampled_from(TYPES),
    st.sampled_from(["data:image/png;base64,AAAA", "DATA:,x", "https://a.example/b.png", "image/png", "data:", "AAAA"]),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
typed = st.builds(
    lambda kind, rest: {"type": kind, **rest},
    st.sampled_from(TYPES),
    st.dictionaries(st.sampled_from(KEYS), values, max_size=4),
)
known = st.builds(lambda make, image: make(image), st.sampled_from([*READABLE.values()]), st.sampled_from(IMAGES))
elsewhere = st.sampled_from([block for block, _, _ in ELSEWHERE.values()] + list(UNREADABLE.values()))
blocks = st.one_of(known, elsewhere, typed, st.dictionaries(st.text(max_size=5), values, max_size=3), st.text())
contents = st.text() | st.lists(blocks, max_size=4)
messages = st.one_of(
    st.builds(HumanMessage, contents, id=st.none() | st.text(), name=st.none() | st.text()),
    st.builds(SystemMessage, contents),
    st.builds(AIMessage, contents, response_metadata=st.dictionaries(st.text(), st.text(), max_size=2)),
    st.builds(AIMessageChunk, contents),
    st.builds(ToolMessage, contents, tool_call_id=st.text(), artifact=values),
    st.builds(ChatMessage, contents, role=st.sampled_from(["assistant", "user", "x"])),
    st.builds(FunctionMessage, contents, name=st.text()),
)
likes = st.one_of(
    messages,
    st.tuples(st.sampled_from(["human", "system", "ai"]), contents),
    st.builds(lambda content: {"role": "user", "content": content}, contents),
)
inputs = st.one_of(
    st.text(),
    st.lists(likes, max_size=4),
    st.lists(likes, max_size=3).map(tuple),
    st.builds(ChatPromptValue, messages=st.lists(messages, max_size=4)),
    st.builds(StringPromptValue, text=st.text()),
)


@pytest.fixture(scope="module")
def guard(tmp_path_factory) -> ImageGuard:
    return ImageGuard(colour_guard(tmp_path_factory.mktemp("cache")), artifacts=True)


def messages_in(value: Any) -> list[BaseMessage]:
    return value.to_messages() if hasattr(value, "to_messages") else [] if isinstance(value, str) else list(value)


@given(value=inputs)
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_input_comes_back_as_its_own_type_and_is_not_changed(guard, value):
    before = copy.deepcopy(value)
    out = guard.invoke(value)
    assert value == before, "the input was changed"
    assert type(out) is type(value)
    assert guard.invoke(out) is out or guard.invoke(out) == out, "guarding again changed something"
    added = len(messages_in(out)) - len(messages_in(value))
    for old, new in zip(messages_in(value), messages_in(out)[added:], strict=True):
        if isinstance(old, BaseMessage):
            assert (type(new), new.id, new.name) == (type(old), old.id, old.name)
            assert isinstance(new.content, type(old.content))


@given(content=contents)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_content_is_either_words_or_has_a_verdict_for_each_place(guard, content):
    report = guard.inspect([HumanMessage(content)])
    assert len(report.verdicts) == len(find(content))
    for verdict in report.verdicts:
        assert verdict.score is not None or verdict.uninspectable is not None
