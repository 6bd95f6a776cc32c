"""What a chat model's input is made of."""

from __future__ import annotations

from chat_images import v1
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from guardalign_guardrails.testing.colours import painted
from langchain_guardalign.screening import read_input


def test_sources_follow_from_the_type_and_place_of_a_message():
    image = [v1(painted())]
    messages = [
        SystemMessage(image),
        HumanMessage(image),
        AIMessage(image),
        ToolMessage(image, tool_call_id="t"),
        HumanMessage(image),
        HumanMessage("and that one"),
        AIMessage(""),
        ToolMessage(image, tool_call_id="u"),
    ]
    assert [turn.source for _, _, turn in read_input(messages).turns] == [
        "user",
        "history",
        "generated",
        "tool",
        "user",
        "user",
        "generated",
        "tool",
    ]
