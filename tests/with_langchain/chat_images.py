"""Images as chat content in the dialects that tests speak, and things that keep what they are given or told."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from PIL import Image

from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import CELL, painted

MASKED = painted()
"""What is left of ``painted("red")`` under the colour policy."""
MASKED.paste("black", (0, 0, CELL, CELL))


def b64(image: Image.Image) -> str:
    return base64.b64encode(encode_png(image)).decode()


def data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{b64(image)}"


def v1(image: Image.Image, **extra: Any) -> dict[str, Any]:
    return {"type": "image", "base64": b64(image), "mime_type": "image/png", **extra}


def openai(image: Image.Image, **extra: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image), "detail": "low"}, **extra}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image_of(block: dict[str, Any]) -> Image.Image:
    """The image in a v1 or OpenAI block."""
    inner = block.get("image_url")
    encoded = block["base64"] if "base64" in block else (inner if isinstance(inner, str) else inner["url"])
    return Image.open(io.BytesIO(base64.b64decode(encoded.rpartition(",")[2]))).convert("RGB")


class RecordingModel(BaseChatModel):
    """Answers ``words`` one token at a time and keeps every list of messages it was given."""

    received: list[list[BaseMessage]]
    words: tuple[str, ...] = ("one ", "two ", "three")

    @classmethod
    def make(cls, *words: str) -> RecordingModel:
        return cls(received=[], **({"words": words} if words else {}))

    @property
    def _llm_type(self) -> str:
        return "recording"

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        self.received.append(messages)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("".join(self.words)))])

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> Iterator[ChatGenerationChunk]:
        self.received.append(messages)
        for word in self.words:
            yield ChatGenerationChunk(message=AIMessageChunk(word))


def blocks(messages: Sequence[BaseMessage]) -> list[Any]:
    """All content blocks of some messages, plain text as it is."""
    contents = ([m.content] if isinstance(m.content, str) else m.content for m in messages)
    return [block for content in contents for block in content]


class Listener(BaseCallbackHandler):
    """Keeps everything a tracer is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.heard: list[str] = []

    def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        self.events.append((name, data))
        self.heard.append(repr(data))

    def on_chain_start(self, serialized: Any, inputs: Any, **_: Any) -> None:
        self.heard.append(repr(inputs))

    def on_chain_end(self, outputs: Any, **_: Any) -> None:
        self.heard.append(repr(outputs))

    def on_chain_error(self, error: BaseException, **_: Any) -> None:
        self.heard.append(repr(error))


def calls(guarded: Any) -> list[int]:
    """Sizes of the encoder's calls by the guard of a component."""
    return guarded.guard.guard.detector.encoder.calls


def ask(*images: Image.Image) -> list[HumanMessage]:
    return [HumanMessage([text("What is this?"), *map(v1, images)])]


def stream(runnable: Any, value: Any, is_async: bool) -> list[Any]:
    if not is_async:
        return list(runnable.stream(value))

    async def collect() -> list[Any]:
        return [chunk async for chunk in runnable.astream(value)]

    return asyncio.run(collect())
