"""Every way to ask a model by the OpenAI SDK, sync and async, as one call that gives back text, refusal and object.

The images that were sent are read from the wire, not by the package's own dialects.
"""

from __future__ import annotations

import asyncio
import base64
import io
import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from openai import AsyncOpenAI, DefaultHttpxClient, OpenAI
from PIL import Image
from pydantic import BaseModel

from guardalign_guardrails.content.payload import to_data_url
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import CELL, colour_policy, painted
from with_langchain.openai_server import OpenAIServer, Request

HTTPX = import_module(DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
"""What the SDK sends by: httpx, from openai 3 on HTTPX."""

MASKED = painted()
"""What is left of ``painted("red")`` under the colour policy."""
MASKED.paste("black", (0, 0, CELL, CELL))

PREFIX = colour_policy().prefix
REFUSAL = colour_policy().refusal
WAYS = ("create", "stream", "helper", "parse", "raw", "streamed raw")
APIS = ("chat", "responses")


class Answer(BaseModel):
    """What is in the image."""

    word: str


@dataclass(frozen=True)
class Said:
    """An answer: its words, its refusal, its object, and what the SDK gave for it (for a stream, its events)."""

    text: str
    refusal: str
    parsed: Any
    whole: Any


@dataclass(frozen=True)
class Way:
    """One API, one method, sync or async."""

    api: str
    way: str
    is_async: bool

    def __str__(self) -> str:
        return f"{self.api}, {self.way}, {'async' if self.is_async else 'sync'}"

    def client(self, server: OpenAIServer) -> OpenAI | AsyncOpenAI:
        return client_of(server, AsyncOpenAI if self.is_async else OpenAI)

    def content(self, *images: Image.Image, words: str = "What?") -> list[Any]:
        write = chat_block if self.api == "chat" else item_block
        kind = "text" if self.api == "chat" else "input_text"
        return [{"type": kind, "text": words}, *map(write, images)]

    def ask(self, client: Any, chat: list[Any], **options: Any) -> Said:
        arguments = {"model": "gpt-4o", "messages" if self.api == "chat" else "input": chat, **options}
        if self.is_async:
            return asyncio.run(self.said(client, arguments))
        return (_chat if self.api == "chat" else _responses)(client, self.way, arguments)

    async def said(self, client: Any, arguments: dict[str, Any]) -> Said:
        return await (_achat if self.api == "chat" else _aresponses)(client, self.way, arguments)


def client_of(server: OpenAIServer, kind: Any = OpenAI, **options: Any) -> Any:
    """A client of the server, made without loading certificates, which takes longer than any test."""
    http = HTTPX.AsyncClient if issubclass(kind, AsyncOpenAI) else HTTPX.Client
    settings = {"base_url": server.base_url, "api_key": "test", "max_retries": 0, "timeout": 20, **options}
    settings.setdefault("http_client", http(verify=False))
    return kind(**{key: value for key, value in settings.items() if value is not None})


def every_way() -> list[Way]:
    return [Way(api, way, is_async) for api in APIS for way in WAYS for is_async in (False, True)]


def url(image: Image.Image) -> str:
    return to_data_url(encode_png(image), "image/png")


def chat_block(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(image), "detail": "low"}}


def item_block(image: Image.Image) -> dict[str, Any]:
    return {"type": "input_image", "image_url": url(image), "detail": "low"}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def images(request: Request) -> list[Image.Image]:
    return opened_in(request.raw.decode())


def opened_in(text: str) -> list[Image.Image]:
    """All images in JSON, in order."""
    encoded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)
    return [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in encoded]


def prefixes(request: Request) -> int:
    return request.raw.decode().count(PREFIX)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.convert("RGB").tobytes()


def _chat(client: Any, way: str, arguments: dict[str, Any]) -> Said:
    api = client.chat.completions
    if way == "stream":
        return _of_chunks(list(api.create(stream=True, **arguments)))
    if way == "helper":
        with api.stream(**arguments) as stream:
            return _of_completion(stream.get_final_completion())
    if way == "parse":
        return _of_completion(api.parse(response_format=Answer, **arguments))
    if way == "raw":
        return _of_completion(api.with_raw_response.create(**arguments).parse())
    if way == "streamed raw":
        with api.with_streaming_response.create(**arguments) as response:
            return _of_completion(response.parse())
    return _of_completion(api.create(**arguments))


async def _achat(client: Any, way: str, arguments: dict[str, Any]) -> Said:
    api = client.chat.completions
    if way == "stream":
        return _of_chunks([chunk async for chunk in await api.create(stream=True, **arguments)])
    if way == "helper":
        async with api.stream(**arguments) as stream:
            return _of_completion(await stream.get_final_completion())
    if way == "parse":
        return _of_completion(await api.parse(response_format=Answer, **arguments))
    if way == "raw":
        return _of_completion((await api.with_raw_response.create(**arguments)).parse())
    if way == "streamed raw":
        async with api.with_streaming_response.create(**arguments) as response:
            return _of_completion(await response.parse())
    return _of_completion(await api.create(**arguments))


def _responses(client: Any, way: str, arguments: dict[str, Any]) -> Said:
    api = client.responses
    if way == "stream":
        return _of_events(list(api.create(stream=True, **arguments)))
    if way == "helper":
        with api.stream(**arguments) as stream:
            return _of_response(stream.get_final_response())
    if way == "parse":
        return _of_response(api.parse(text_format=Answer, **arguments))
    if way == "raw":
        return _of_response(api.with_raw_response.create(**arguments).parse())
    if way == "streamed raw":
        with api.with_streaming_response.create(**arguments) as response:
            return _of_response(response.parse())
    return _of_response(api.create(**arguments))


async def _aresponses(client: Any, way: str, arguments: dict[str, Any]) -> Said:
    api = client.responses
    if way == "stream":
        return _of_events([event async for event in await api.create(stream=True, **arguments)])
    if way == "helper":
        async with api.stream(**arguments) as stream:
            return _of_response(await stream.get_final_response())
    if way == "parse":
        return _of_response(await api.parse(text_format=Answer, **arguments))
    if way == "raw":
        return _of_response((await api.with_raw_response.create(**arguments)).parse())
    if way == "streamed raw":
        async with api.with_streaming_response.create(**arguments) as response:
            return _of_response(await response.parse())
    return _of_response(await api.create(**arguments))


def _of_completion(whole: Any) -> Said:
    message = whole.choices[0].message
    return Said(message.content or "", message.refusal or "", getattr(message, "parsed", None), whole)


def _of_chunks(chunks: list[Any]) -> Said:
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    text, refusal = ("".join(getattr(delta, name) or "" for delta in deltas) for name in ("content", "refusal"))
    return Said(text, refusal, None, chunks)


def _of_response(whole: Any) -> Said:
    parts = [part for item in whole.output if item.type == "message" for part in item.content]
    refusal = "".join(part.refusal for part in parts if part.type == "refusal")
    return Said(whole.output_text, refusal, getattr(whole, "output_parsed", None), whole)


def _of_events(events: list[Any]) -> Said:
    text, refusal = (
        "".join(event.delta for event in events if event.type == f"response.{name}.delta")
        for name in ("output_text", "refusal")
    )
    last = events[-1].response
    assert (_of_response(last).text, _of_response(last).refusal) == (text, refusal)
    return Said(text, refusal, None, events)
