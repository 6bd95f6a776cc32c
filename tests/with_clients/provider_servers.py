"""Small servers on the loopback that speak enough of the providers' protocols to be talked to by their real clients.

Each keeps every request as it came over the wire. What OpenAI's own say is in ``openai_server``.
"""

from __future__ import annotations

import binascii
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from with_clients.recording_http import Send, listening
from with_langchain.openai_server import OpenAIServer, Request, as_json, call_tool, event, say

EVENTS = "text/event-stream"


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool that a server answers with."""

    name: str
    arguments: Mapping[str, Any]


Answer = str | ToolCall
"""What a server answers: some words, or a call of a tool."""

Speak = Callable[[str, dict[str, Any], Answer], tuple[str, Sequence[bytes]]]
"""Given the path and the body of a request and what to answer, the content type and the frames of the answer."""


@dataclass
class ProviderServer:
    """What a test sees of a server.

    Attributes:
        url: Its address.
        requests: Every request so far.
        answers: What to answer to the next requests, in order; then it says "one two three".
    """

    url: str
    requests: list[Request] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)


@contextmanager
def speaking(speak: Speak) -> Iterator[ProviderServer]:
    """Run a server of a protocol on a free port of 127.0.0.1 until the block ends."""

    def respond(path: str, raw: bytes, content_type: str) -> tuple[str, Callable[[Send], None]]:
        server.requests.append(Request(path, raw, content_type))
        answer = server.answers.pop(0) if server.answers else "one two three"
        kind, frames = speak(path, json.loads(raw), answer)
        return kind, lambda send: send(b"".join(frames))

    with listening(respond) as url:
        server = ProviderServer(url)
        yield server


def openai(path: str, body: dict[str, Any], answer: Answer) -> tuple[str, Sequence[bytes]]:
    """OpenAI's two APIs; Mistral's is written like the older one."""
    said = call_tool(answer.name, **answer.arguments) if isinstance(answer, ToolCall) else say(answer)
    server, frames, is_stream = OpenAIServer("", answer=said), list[bytes](), bool(body.get("stream"))
    write = server.respond if path.endswith("/responses") else server.chat
    write(Request(path, as_json(body)), lambda value: frames.append((event if is_stream else as_json)(value)))
    return EVENTS if is_stream else "application/json", frames


def anthropic_messages(path: str, body: dict[str, Any], answer: Answer) -> tuple[str, Sequence[bytes]]:
    """Anthropic's Messages API."""
    if isinstance(answer, ToolCall):
        opened: dict[str, Any] = {"type": "tool_use", "id": "call00001", "name": answer.name, "input": {}}
        block = {**opened, "input": dict(answer.arguments)}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(answer.arguments)}
        reason = "tool_use"
    else:
        opened, block, reason = {"type": "text", "text": ""}, {"type": "text", "text": answer}, "end_turn"
        delta = {"type": "text_delta", "text": answer}
    usage = {"input_tokens": 11, "output_tokens": 3}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "usage": usage}
    message = {**head, "content": [block], "stop_reason": reason, "stop_sequence": None}
    if not body.get("stream"):
        return "application/json", [as_json(message)]
    started = {**message, "content": [], "stop_reason": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": started},
        {"type": "content_block_start", "index": 0, "content_block": opened},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]
    return EVENTS, [b"event: " + value["type"].encode() + b"\n" + event(value) for value in events]


def gemini(path: str, body: dict[str, Any], answer: Answer) -> tuple[str, Sequence[bytes]]:
    """Gemini's ``generateContent`` and ``streamGenerateContent``."""
    if isinstance(answer, ToolCall):
        part: dict[str, Any] = {"functionCall": {"name": answer.name, "args": dict(answer.arguments)}}
    else:
        part = {"text": answer}
    candidate = {"index": 0, "content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}
    usage = {"promptTokenCount": 11, "candidatesTokenCount": 3, "totalTokenCount": 14}
    whole = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini"}
    return (EVENTS, [event(whole)]) if "stream" in path else ("application/json", [as_json(whole)])


def bedrock_converse(path: str, body: dict[str, Any], answer: Answer) -> tuple[str, Sequence[bytes]]:
    """Bedrock's ``converse`` and ``converse-stream``."""
    usage = {"inputTokens": 11, "outputTokens": 3, "totalTokens": 14}
    reason = "tool_use" if isinstance(answer, ToolCall) else "end_turn"
    if isinstance(answer, ToolCall):
        use = {"toolUseId": "call00001", "name": answer.name}
        block: dict[str, Any] = {"toolUse": {**use, "input": dict(answer.arguments)}}
        opened = [("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": use}})]
        delta: dict[str, Any] = {"toolUse": {"input": json.dumps(answer.arguments)}}
    else:
        block, opened, delta = {"text": answer}, [], {"text": answer}
    if not path.endswith("converse-stream"):
        message = {"message": {"role": "assistant", "content": [block]}}
        whole = {"output": message, "stopReason": reason, "usage": usage, "metrics": {"latencyMs": 1}}
        return "application/json", [as_json(whole)]
    events = [
        ("messageStart", {"role": "assistant"}),
        *opened,
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": delta}),
        ("contentBlockStop", {"contentBlockIndex": 0}),
        ("messageStop", {"stopReason": reason}),
        ("metadata", {"usage": usage, "metrics": {"latencyMs": 1}}),
    ]
    return "application/vnd.amazon.eventstream", [_aws_frame(name, value) for name, value in events]


def ollama_chat(path: str, body: dict[str, Any], answer: Answer) -> tuple[str, Sequence[bytes]]:
    """Ollama's ``/api/chat``: one line of JSON for each part of an answer."""
    head = {"model": body["model"], "created_at": "2025-01-01T00:00:00Z"}
    if isinstance(answer, ToolCall):
        said: dict[str, Any] = {"content": "", "tool_calls": [{"function": {"name": answer.name}}]}
        said["tool_calls"][0]["function"]["arguments"] = dict(answer.arguments)
    else:
        said = {"content": answer}
    end = {"done": True, "done_reason": "stop", "prompt_eval_count": 11, "eval_count": 3}
    parts = [
        {**head, "message": {"role": "assistant", **said}, "done": False},
        {**head, "message": {"role": "assistant", "content": ""}, **end},
    ]
    if body.get("stream") is False:
        return "application/json", [as_json({**parts[0], **end})]
    return "application/x-ndjson", [as_json(part) + b"\n" for part in parts]


def _aws_frame(name: str, value: Any) -> bytes:
    """A message of AWS's event stream: lengths, their checksum, headers, payload, checksum of it all."""
    stated = {":message-type": "event", ":event-type": name, ":content-type": "application/json"}
    headers = b"".join(
        bytes([len(key)]) + key.encode() + b"\x07" + struct.pack(">H", len(text)) + text.encode()
        for key, text in stated.items()
    )
    payload = as_json(value)
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    body = prelude + struct.pack(">I", binascii.crc32(prelude)) + headers + payload
    return body + struct.pack(">I", binascii.crc32(body))
