"""Two models behind one guard: who gets what, with one check."""

from __future__ import annotations

import pytest
from chat_images import (
    MASKED,
    Listener,
    RecordingModel,
    ask,
    calls,
    image_of,
    stream,
    text,
)
from langchain_core.runnables import RunnablePassthrough

from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.testing.colours import colour_guard, painted
from langchain_guardalign import ImageGuard


class TestRoute:
    @pytest.fixture
    def safe(self) -> RecordingModel:
        return RecordingModel.make("all ", "is ", "well")

    @pytest.fixture
    def unsafe(self) -> RecordingModel:
        return RecordingModel.make("rather ", "not")

    @pytest.mark.parametrize(
        ("colour", "goes_to"),
        [
            ("white", "safe"),
            ("magenta", "safe"),
            ("green", "safe"),
            ("red", "safe"),
            ("yellow", "unsafe"),
            ("blue", "unsafe"),
        ],
    )
    def test_the_severest_action_chooses_and_the_check_is_made_once(self, guard, safe, unsafe, call, colour, goes_to):
        answer = call(guard.route(safe, unsafe), "invoke", ask(painted(colour, shade=7)))
        assert answer.content == ("all is well" if goes_to == "safe" else "rather not")
        # A masked image is scored again; nothing else is scored twice.
        assert len(calls(guard)) == (2 if colour == "red" else 1)

    def test_neither_branch_gets_the_raw_image(self, guard, safe, unsafe):
        route = guard.route(safe, unsafe)
        route.invoke(ask(painted("red")))
        route.invoke(ask(painted("yellow"), painted("red")))
        assert image_of(safe.received[0][-1].content[1]).tobytes() == MASKED.tobytes()
        assert unsafe.received[0][-1].content[1] == text(NOTICE)
        assert image_of(unsafe.received[0][-1].content[2]).tobytes() == MASKED.tobytes()

    @pytest.mark.parametrize("is_async", [False, True])
    def test_the_chosen_branch_streams(self, guard, safe, unsafe, is_async):
        chunks = stream(guard.route(safe, unsafe), ask(painted("blue")), is_async)
        assert [chunk.content for chunk in chunks if chunk.content] == ["rather ", "not"]
        assert safe.received == []

    def test_a_batch_is_checked_at_once_and_answered_in_order(self, guard, safe, unsafe, call):
        inputs = [ask(painted("blue")), 5, ask(painted()), ask(painted("yellow")), "words"]
        out = call(guard.route(safe, unsafe), "batch", inputs, return_exceptions=True)
        assert [getattr(item, "content", type(item)) for item in out] == [
            "rather not",
            TypeError,
            "all is well",
            "rather not",
            "all is well",
        ]
        assert len(calls(guard)) == 1

    def test_a_blocked_input_is_routed_even_if_blocks_are_errors_elsewhere(self, cache_dir, safe, unsafe):
        guard = ImageGuard(guard=colour_guard(cache_dir), on_violation="raise")
        assert guard.route(safe, unsafe).invoke(ask(painted("blue"))).content == "rather not"

    def test_a_plain_function_can_be_a_branch(self, guard, safe):
        assert guard.route(safe, lambda messages: len(messages)).invoke(ask(painted("blue"))) == 1

    def test_the_verdict_is_told_in_an_event(self, guard, safe, unsafe, call):
        listener = Listener()
        call(guard.route(safe, unsafe), "invoke", ask(painted("blue")), {"callbacks": [listener]})
        assert [(name, data["action"]) for name, data in listener.events] == [("guardalign.verdict", "block")]

    def test_a_stream_tells_it_too_and_works_behind_other_steps(self, guard, safe, unsafe):
        listener = Listener()
        chain = RunnablePassthrough() | guard.route(safe, unsafe)
        answer = "".join(chunk.content for chunk in chain.stream(ask(painted("blue")), {"callbacks": [listener]}))
        assert answer == "rather not"
        assert len(listener.events) == 1
