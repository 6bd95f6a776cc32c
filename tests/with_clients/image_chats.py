"""Chats with an image in one of several places, written in any dialect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from content.block_matrix import READABLE


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _user(blocks: list[Any]) -> list[BaseMessage]:
    return [HumanMessage([_text("What is this?"), *blocks])]


def _history(blocks: list[Any]) -> list[BaseMessage]:
    return [HumanMessage([_text("What is this?"), *blocks]), AIMessage("A square."), HumanMessage("And now?")]


def _answer(blocks: list[Any]) -> list[BaseMessage]:
    return [HumanMessage("Draw it."), AIMessage([_text("There."), *blocks]), HumanMessage("And now?")]


def _tool(blocks: list[Any]) -> list[BaseMessage]:
    call = {"name": "look", "args": {"where": "up"}, "id": "call00001"}
    result = ToolMessage([_text("A shot."), *blocks], tool_call_id="call00001", name="look")
    return [HumanMessage("Look up."), AIMessage("", tool_calls=[call]), result]


PLACES: dict[str, Callable[[list[Any]], list[BaseMessage]]] = {
    "user": _user,
    "history": _history,
    "model": _answer,
    "tool": _tool,
}
"""Messages with some blocks in the user's turn, an earlier turn, an earlier answer of the model, a tool's result."""

DIALECTS = {
    **READABLE,
    "Bedrock bytes with a type": lambda data: {"type": "image", **READABLE["Bedrock bytes"](data)},
}


def chat(place: str, dialect: str, *images: bytes) -> list[BaseMessage]:
    return PLACES[place]([DIALECTS[dialect](image) for image in images])
