"""The policy's refusal in the form of OpenAI's API, for a request that is not sent.

An app shows it without a second path: the SDK makes its usual objects of it, streams and parsed ones too, and the text
is where apps look for a model's answer.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from guardalign_guardrails.content.bodies import Body, Form

RESPONSE_ID: Final = "resp_guardalign_"
"""How the id of a refusal begins; the id of the response before it comes last, so that a chat can go on from there."""

COMPLETION_ID: Final = "chatcmpl-guardalign-"
"""How the id of a refused chat completion begins."""

_REFUSED: Final = re.compile(rf"/(responses/{RESPONSE_ID}|chat/completions/{COMPLETION_ID})")
_STRUCTURED: Final = ("json_schema", "json_object")


@dataclass(frozen=True)
class RefusalResponse:
    """The answer that a client reads in place of the API's.

    Attributes:
        media_type: JSON, or a stream of events.
        data: The answer, encoded.
        status: The HTTP status.
    """

    media_type: str
    data: bytes = field(repr=False)
    status: int = 200


def refusal(body: Body, form: Form, text: str, record: dict[str, Any], *, is_parsed: bool) -> RefusalResponse:
    """A refusal in the form the request asked for.

    Args:
        body: Of the request.
        form: ``chat`` or ``responses``.
        text: The refusal.
        record: The findings; they are under ``guardalign`` in the answer.
        is_parsed: Whether the SDK parses the answer. It takes ``content_filter`` for an error then, so that the answer
            ends as a model's own refusal does.
    """
    if form == "chat":
        return _completion(body, text, record, "stop" if is_parsed else "content_filter")
    return _response(body, text, record)


def unknown_id(path: str) -> RefusalResponse | None:
    """The answer to a request for a stored refusal: no server has one, and nothing is kept here.

    Args:
        path: Of the request's URL, in lower case.

    Returns:
        What the SDK raises as its own ``NotFoundError``; None for any other request.
    """
    if _REFUSED.search(path) is None:
        return None
    message = (
        "This id belongs to a refusal of the safety policy (GuardAlign). The request was never sent, so that the API "
        "has nothing under this id, and the refusal was complete when it was given."
    )
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": "guardalign_refusal"}
    return RefusalResponse("application/json", json.dumps({"error": error}).encode(), status=404)


def continued(body: Body) -> Body:
    """The body of a request that follows a refusal: it follows what that one would have followed."""
    previous = body.get("previous_response_id")
    if not isinstance(previous, str) or not previous.startswith(RESPONSE_ID):
        return body
    before = previous.removeprefix(RESPONSE_ID).partition(".")[2]
    rest = {key: value for key, value in body.items() if key != "previous_response_id"}
    return {**rest, "previous_response_id": before} if before else rest


def _completion(body: Body, text: str, record: dict[str, Any], reason: str) -> RefusalResponse:
    head = {"id": COMPLETION_ID + uuid.uuid4().hex, "created": int(time.time()), "model": body.get("model")}
    # Apps show the content; the SDK parses none beside a refusal.
    message = {"role": "assistant", "content": text, "refusal": text}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    places = range(body.get("n") or 1)
    if not body.get("stream"):
        choices = [{"index": place, "message": message, "finish_reason": reason, "logprobs": None} for place in places]
        return _json({**head, "object": "chat.completion", "choices": choices, "usage": usage, "guardalign": record})
    head["object"] = "chat.completion.chunk"
    first = [{"index": place, "delta": message, "finish_reason": None} for place in places]
    last = [{"index": place, "delta": {}, "finish_reason": reason} for place in places]
    chunks: list[dict[str, Any]] = [{**head, "choices": first, "guardalign": record}, {**head, "choices": last}]
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks.append({**head, "choices": [], "usage": usage})
    return _stream([*(f"data: {json.dumps(chunk)}" for chunk in chunks), "data: [DONE]"])


def _response(body: Body, text: str, record: dict[str, Any]) -> RefusalResponse:
    key, previous = uuid.uuid4().hex, body.get("previous_response_id")
    item = {"id": f"msg_guardalign_{key}", "type": "message", "role": "assistant"}
    done = {**item, "status": "completed", "content": [_part(body, text)]}
    started = {
        "id": f"{RESPONSE_ID}{key}.{previous}" if previous else RESPONSE_ID + key,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "model": body.get("model"),
        "output": [],
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "previous_response_id": previous,
        "background": body.get("background", False),
        "guardalign": record,
    }
    usage = {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }
    completed = {**started, "status": "completed", "output": [done], "usage": usage}
    if not body.get("stream"):
        return _json(completed)
    events = _response_events(started, {**item, "status": "in_progress", "content": []}, done, completed)
    numbered = ({**event, "sequence_number": number} for number, event in enumerate(events))
    return _stream([f"event: {event['type']}\ndata: {json.dumps(event)}" for event in numbered])


def _part(body: Body, text: str) -> dict[str, Any]:
    """The part of a message that says the refusal: text, which apps show.

    Text would be parsed where the request asks for structured output, so that the API's own ``refusal`` stands there.
    """
    settings = body.get("text")
    wanted = settings.get("format") if isinstance(settings, Mapping) else None
    if isinstance(wanted, Mapping) and wanted.get("type") in _STRUCTURED:
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response_events(started: Any, item: Any, done: Any, completed: Any) -> Iterator[dict[str, Any]]:
    """The events by which a message with one part comes."""
    (part,) = done["content"]
    kind = part["type"]
    key = "refusal" if kind == "refusal" else "text"
    at_item = {"output_index": 0, "item_id": item["id"]}
    at_part = {**at_item, "content_index": 0}
    probabilities: dict[str, Any] = {} if kind == "refusal" else {"logprobs": []}
    yield {"type": "response.created", "response": started}
    yield {"type": "response.in_progress", "response": started}
    yield {"type": "response.output_item.added", "output_index": 0, "item": item}
    yield {"type": "response.content_part.added", **at_part, "part": {**part, key: ""}}
    yield {"type": f"response.{kind}.delta", **at_part, "delta": part[key], **probabilities}
    yield {"type": f"response.{kind}.done", **at_part, key: part[key], **probabilities}
    yield {"type": "response.content_part.done", **at_part, "part": part}
    yield {"type": "response.output_item.done", "output_index": 0, "item": done}
    yield {"type": "response.completed", "response": completed}


def _json(value: dict[str, Any]) -> RefusalResponse:
    return RefusalResponse("application/json", json.dumps(value).encode())


def _stream(events: list[str]) -> RefusalResponse:
    return RefusalResponse("text/event-stream", "".join(f"{event}\n\n" for event in events).encode())
