"""Each step is taken once for each input: it is read, searched, decoded and checked once, and traced if need be."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import pytest
from chat_images import Listener, RecordingModel, ask
from langchain_core.messages import AIMessage, HumanMessage

from guardalign_guardrails.content import redaction, screen
from guardalign_guardrails.guarding import guard as guard_module
from guardalign_guardrails.guarding import reading
from guardalign_guardrails.testing.colours import colour_guard, painted
from langchain_guardalign import GuardedChatModel, ImageGuard, messages, screening

CHAT = [HumanMessage("Look."), AIMessage("At what?"), *ask(painted("red"), painted())]


@pytest.fixture
def counts(monkeypatch) -> Counter[str]:
    """How often the real functions of each step are called."""
    counted: Counter[str] = Counter()

    def count(module: Any, name: str, step: str) -> None:
        real = getattr(module, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counted[step] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counting)

    count(messages, "convert_to_messages", "convert")
    count(screen.Turn, "find", "search")
    count(redaction, "find", "search")
    count(screening, "with_text_at", "trace")
    count(reading, "freeze", "open")
    count(guard_module, "decode", "decode")
    return counted


@contextmanager
def records() -> Iterator[set[str]]:
    """The dataclasses of messages that are made within the block; what the guard makes of an image is its own."""
    made: set[str] = set()

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name == "__init__" and is_dataclass(frame.f_locals.get("self")):
            kind = type(frame.f_locals["self"])
            if kind.__module__.startswith(("guardalign_guardrails.content", "langchain_guardalign")):
                made.add(kind.__name__.lstrip("_"))

    sys.setprofile(profile)
    try:
        yield made
    finally:
        sys.setprofile(None)


def parts(of: Counter[str]) -> dict[str, int]:
    return {step: of[step] for step in ("convert", "search", "decode", "trace")}


class TestImageGuard:
    def test_without_a_tracer_an_input_is_read_and_searched_once_and_nothing_is_traced(self, cache_dir, counts, call):
        call(ImageGuard(colour_guard(cache_dir)), "invoke", CHAT)
        assert parts(counts) == {"convert": 1, "search": len(CHAT), "decode": 2, "trace": 0}

    def test_a_trace_is_made_of_what_was_found(self, cache_dir, counts, call):
        listener = Listener()
        call(ImageGuard(colour_guard(cache_dir)), "invoke", CHAT, {"callbacks": [listener]})
        # The one message with images, in the trace's input and in its output.
        assert parts(counts) == {"convert": 1, "search": len(CHAT), "decode": 2, "trace": 2}
        assert "image omitted" in "".join(listener.heard)

    def test_each_input_of_a_batch_is_read_once(self, cache_dir, counts, call):
        call(ImageGuard(colour_guard(cache_dir)), "batch", [CHAT, CHAT[:2], "words"])
        assert parts(counts) == {"convert": 2, "search": len(CHAT) + 2, "decode": 2, "trace": 0}

    def test_so_is_one_that_is_routed(self, cache_dir, counts, call):
        route = ImageGuard(colour_guard(cache_dir)).route(lambda value: value, lambda value: value)
        call(route, "invoke", CHAT)
        assert parts(counts) == {"convert": 1, "search": len(CHAT), "decode": 2, "trace": 0}

    def test_a_chat_without_images_costs_no_trace_even_if_there_is_a_tracer(self, cache_dir, counts, call):
        call(ImageGuard(colour_guard(cache_dir)), "invoke", CHAT[:2], {"callbacks": [Listener()]})
        assert parts(counts) == {"convert": 1, "search": 2, "decode": 0, "trace": 0}


class TestGuardedChatModel:
    @pytest.mark.parametrize("method", ["invoke", "generate", "batch"])
    def test_an_input_is_read_and_searched_once(self, cache_dir, counts, call, method):
        guarded = GuardedChatModel(model=RecordingModel.make(), guard=colour_guard(cache_dir))
        call(guarded, method, CHAT if method == "invoke" else [CHAT])
        assert parts(counts) == {"convert": 1, "search": len(CHAT), "decode": 2, "trace": 0}

    def test_a_message_goes_through_two_records_of_langchain_and_those_of_the_core(self, cache_dir):
        guarded = GuardedChatModel(model=RecordingModel.make(), guard=colour_guard(cache_dir))
        guarded.invoke(CHAT)
        with records() as made:
            guarded.invoke(CHAT)
        own = {"ModelInput", "Delegation"}
        assert made - own == {
            "ChatDecision",
            "MediaBlock",
            "OpenedBlock",
            "Reading",
            "Screened",
            "ScreenedChat",
            "Turn",
        }
        assert own <= made
