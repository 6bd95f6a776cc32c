"""Inputs that are plain text: an image and nothing else is one there as it is in a message."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from chat_images import Listener, RecordingModel, b64, data_url
from langchain_core.messages import AIMessage, ChatMessage, FunctionMessage, HumanMessage
from langchain_core.prompt_values import StringPromptValue
from langchain_core.prompts import PromptTemplate

from guardalign_guardrails import Guard, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.testing.colours import colour_guard, painted
from langchain_guardalign import GuardedChatModel, ImageGuard
from langchain_guardalign.messages import role

PREFIX = "Be careful."
FORMS = {"a data URL": data_url, "base64": b64}
INPUTS = {"a string": str, "a prompt": lambda text: StringPromptValue(text=text)}
CALLS = {
    "invoke": lambda model, value: model.invoke(value),
    "ainvoke": lambda model, value: asyncio.run(model.ainvoke(value)),
    "batch": lambda model, value: model.batch([value])[0],
    "stream": lambda model, value: list(model.stream(value)),
}


@pytest.fixture
def guard(cache_dir) -> Guard:
    return colour_guard(cache_dir)


def said(value: Any) -> str:
    return value if isinstance(value, str) else value.to_string()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", INPUTS)
class TestAnImageAlone:
    @pytest.mark.parametrize("call", CALLS)
    def test_reaches_no_guarded_model_unless_it_may(self, guard, make, form, call):
        for colour, is_asked in (("magenta", True), ("red", True), ("blue", False)):
            model, text = RecordingModel.make(), FORMS[form](painted(colour))
            CALLS[call](GuardedChatModel(model=model, guard=guard), INPUTS[make](text))
            assert (model.received != []) is is_asked
            assert (text in repr(model.received)) is (colour == "magenta")
            assert (PREFIX in repr(model.received)) is (colour == "red")

    def test_passes_a_guard_in_a_chain_masked_and_with_the_prefix_before_it(self, guard, make, form):
        text = FORMS[form](painted("red"))
        output = ImageGuard(guard).invoke(INPUTS[make](text))
        assert isinstance(output, type(INPUTS[make]("")))
        assert said(output).startswith(f"{PREFIX}\n\n{FORMS[form](painted())[:12]}")
        assert text not in said(output)

    def test_is_a_notice_behind_a_guard_in_a_chain_if_it_is_blocked(self, guard, make, form):
        text = FORMS[form](painted("blue"))
        output = ImageGuard(guard).invoke(INPUTS[make](text))
        assert text not in said(output)
        assert NOTICE in said(output)

    def test_is_the_very_same_input_if_it_is_harmless(self, guard, make, form):
        value = INPUTS[make](FORMS[form](painted("white")))
        assert ImageGuard(guard).invoke(value) is value

    @pytest.mark.parametrize("colour", ["red", "blue"])
    def test_is_in_no_trace_if_it_is_unsafe(self, guard, make, form, colour):
        listener = Listener()
        text = FORMS[form](painted(colour))
        for guarded in (GuardedChatModel(model=RecordingModel.make(), guard=guard), ImageGuard(guard)):
            with contextlib.suppress(UnsafeContentError):
                guarded.invoke(INPUTS[make](text), {"callbacks": [listener]})
        assert listener.heard
        assert text not in "".join(listener.heard)


def test_a_prompt_template_before_a_guard_hides_no_image(guard):
    model = RecordingModel.make()
    chain = PromptTemplate.from_template("{it}") | ImageGuard(guard) | model
    chain.invoke({"it": data_url(painted("red"))})
    assert data_url(painted("red")) not in repr(model.received)


def test_what_only_begins_like_an_image_is_refused_or_text_as_in_a_message(guard):
    for text in (f"{data_url(painted('blue'))} is what?", "data:image/png;base64, eh?", "", "Hello."):
        for make in INPUTS.values():
            value = make(text)
            assert ImageGuard(guard).invoke(value) is value


def test_a_function_may_speak_in_any_class_of_message(guard):
    text = data_url(painted("white")) + "#x"
    for message in (ChatMessage(role="function", content=text), FunctionMessage(text, name="look")):
        assert role(message) == "tool"
        output = ImageGuard(guard).invoke([HumanMessage("Look."), AIMessage("Looking."), message])
        assert output[-1].content == UNCHECKED_NOTICE
