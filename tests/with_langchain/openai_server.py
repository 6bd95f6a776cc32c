"""A small server on the loopback that speaks enough of OpenAI's API to be talked to by the real client.

It keeps every request as it came over the wire, and it can hold an answer back, so that a test can tell what was sent
from what was meant to be sent, and a stream from an answer in pieces.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from with_clients.recording_http import Send, listening

USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
WORDS = ("one ", "two ", "three")
PATIENCE_S = 20


@dataclass(frozen=True)
class Request:
    """One request, as it came."""

    path: str
    raw: bytes = field(repr=False)
    content_type: str = "application/json"

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The messages, whichever of the two APIs they came by."""
        return self.body["messages"] if "messages" in self.body else self.body["input"]

    @property
    def blocks(self) -> list[Any]:
        """All content blocks of all messages, plain text as it is."""
        contents = [turn.get("content") for turn in self.turns]
        return [block for content in contents for block in ([content] if isinstance(content, str) else content or [])]

    @property
    def texts(self) -> list[str]:
        return [
            block if isinstance(block, str) else block["text"] for block in self.blocks if "image" not in kind(block)
        ]

    @property
    def images(self) -> list[Image.Image]:
        """The images, decoded from what was sent."""
        urls = [block["image_url"] for block in self.blocks if "image" in kind(block)]
        return [opened(url if isinstance(url, str) else url["url"]) for url in urls]


def kind(block: Any) -> str:
    return "text" if isinstance(block, str) else block["type"]


def opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def digest(image: Image.Image) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


Answer = Callable[[Request], dict[str, Any]]


def say(*words: str) -> Answer:
    """Answer some words, one token each."""
    return lambda _: {"words": words}


def call_tool(name: str, **arguments: Any) -> Answer:
    """Answer with a call of a tool."""
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return lambda _: {"tool_calls": [call]}


@dataclass
class OpenAIServer:
    """What a test sees of the server.

    Attributes:
        base_url: For ``ChatOpenAI``.
        requests: Every request so far.
        answer: What to say to a request: ``{"words": tokens}`` or ``{"tool_calls": calls}``, and ``reason`` to end so.
        gate: If set, each token but the first of a stream waits until it is released once.
    """

    base_url: str
    requests: list[Request] = field(default_factory=list)
    answer: Answer = field(default_factory=lambda: say(*WORDS))
    gate: threading.Semaphore | None = None

    @property
    def last(self) -> Request:
        return self.requests[-1]

    def chat(self, request: Request, write: Callable[[Any], None]) -> None:
        """The chat completions API."""
        said = self.answer(request)
        model = request.body["model"]
        head = {"id": "chatcmpl-1", "created": 0, "model": model, "system_fingerprint": "fp_1"}
        reason = said.get("reason") or ("tool_calls" if "tool_calls" in said else "stop")
        if not request.body.get("stream"):
            message = {"role": "assistant", "content": "".join(said.get("words", ())) or None}
            message |= {key: value for key, value in said.items() if key == "tool_calls"}
            choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
            write({**head, "object": "chat.completion", "choices": [choice], "usage": USAGE})
            return
        deltas: list[dict[str, Any]] = [{"content": word} for word in said.get("words", ())]
        if "tool_calls" in said:
            deltas = [{"tool_calls": [{"index": place, **call} for place, call in enumerate(said["tool_calls"])]}]
        head["object"] = "chat.completion.chunk"
        for place, delta in enumerate(deltas):
            if place and self.gate is not None and not self.gate.acquire(timeout=PATIENCE_S):
                return
            write({**head, "choices": [{"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None}]})
        write({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        if (request.body.get("stream_options") or {}).get("include_usage"):
            write({**head, "choices": [], "usage": USAGE})
        write("[DONE]")

    def respond(self, request: Request, write: Callable[[Any], None]) -> None:
        """The Responses API."""
        said = self.answer(request)
        words = said.get("words", ())
        content = {"type": "output_text", "text": "".join(words), "annotations": []}
        message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [content]}
        calls = [
            {"type": "function_call", "id": f"fc_{place}", "call_id": call["id"], "status": "completed"}
            | call["function"]
            for place, call in enumerate(said.get("tool_calls", ()))
        ]
        usage = {
            "input_tokens": USAGE["prompt_tokens"],
            "output_tokens": USAGE["completion_tokens"],
            "total_tokens": USAGE["total_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        response = {
            # LangGraph takes two messages of one id for one.
            "id": f"resp_{len(request.turns)}",
            "object": "response",
            "created_at": 0,
            "status": "completed",
            "model": request.body["model"],
            "output": calls or [message],
            "usage": usage,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        if not request.body.get("stream"):
            write(response)
            return
        started = {**response, "status": "in_progress", "output": [], "usage": None}
        at_part = {"output_index": 0, "content_index": 0, "item_id": message["id"]}
        part = {**content, "text": ""}
        write({"type": "response.created", "response": started})
        for place, call in enumerate(calls):
            write({"type": "response.output_item.added", "output_index": place, "item": {**call, "arguments": ""}})
            arguments = {"output_index": place, "item_id": call["id"], "delta": call["arguments"]}
            write({"type": "response.function_call_arguments.delta", **arguments})
            write({"type": "response.output_item.done", "output_index": place, "item": call})
        if calls:
            write({"type": "response.completed", "response": response})
            return
        write({"type": "response.output_item.added", "output_index": 0, "item": {**message, "content": []}})
        write({"type": "response.content_part.added", **at_part, "part": part})
        for place, word in enumerate(words):
            if place and self.gate is not None and not self.gate.acquire(timeout=PATIENCE_S):
                return
            write({"type": "response.output_text.delta", **at_part, "delta": word, "logprobs": []})
        write({"type": "response.output_text.done", **at_part, "text": content["text"], "logprobs": []})
        write({"type": "response.output_item.done", "output_index": 0, "item": message})
        write({"type": "response.completed", "response": response})


@contextmanager
def serving() -> Iterator[OpenAIServer]:
    """Run a server on a free port of 127.0.0.1 until the block ends."""

    def respond(path: str, raw: bytes, content_type: str) -> tuple[str, Callable[[Send], None]]:
        request = Request(path, raw, content_type)
        server.requests.append(request)
        if not path.partition("?")[0].endswith(("/chat/completions", "/responses")):
            return "application/json", lambda send: send(as_json({}))
        answer = server.respond if path.endswith("/responses") else server.chat
        is_stream = bool(request.body.get("stream"))
        frame = event if is_stream else as_json
        kind = "text/event-stream" if is_stream else "application/json"
        return kind, lambda send: answer(request, lambda value: send(frame(value)))

    with listening(respond) as url:
        server = OpenAIServer(f"{url}/v1")
        yield server


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def event(value: Any) -> bytes:
    """A server-sent event."""
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()
