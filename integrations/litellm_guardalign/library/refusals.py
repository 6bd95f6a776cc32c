"""The policy's refusal as what LiteLLM's functions return, for a call of the library that asks no model.

The text stands where apps look for a model's own: ``content``, ``output_text``, a text block. A program can tell a
refusal by its ``guardalign``, the findings, and by the finish or stop reason.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

from litellm import ModelResponse, TextCompletionResponse
from litellm.llms.openai.responses.transformation import OpenAIResponsesAPIConfig
from litellm.types.llms.openai import ResponsesAPIResponse
from litellm.types.utils import ModelResponseStream

REASON: Final = "content_filter"


class RefusalStream:
    """A refusal that comes piece by piece, for synchronous and asynchronous callers alike."""

    def __init__(self, pieces: Iterator[Any]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._pieces)

    def __aiter__(self) -> RefusalStream:
        return self

    async def __anext__(self) -> Any:
        try:
            return next(self._pieces)
        except StopIteration:
            raise StopAsyncIteration from None


def refusal(api: str, call: Mapping[str, Any], text: str, record: dict[str, Any]) -> Any:
    """A refusal as LiteLLM's functions return a model's answer, in a stream if the call asks for one.

    Args:
        api: ``chat``, ``text``, ``responses`` or ``messages``.
        call: Arguments of the call.
        text: The refusal.
        record: The findings.
    """
    is_stream = bool(call.get("stream"))
    model = call.get("model")
    if api == "text":
        choices = [{"index": place, "text": text, "finish_reason": REASON} for place in range(call.get("n") or 1)]
        return TextCompletionResponse(model=model, choices=choices, usage=_usage(), guardalign=record)
    if api == "chat":
        return RefusalStream(_chunks(call, text, record)) if is_stream else _completion(call, text, record)
    if api == "messages":
        message = _message(model, text, record)
        return RefusalStream(_message_events(message)) if is_stream else message
    return RefusalStream(_response_events(model, text, record)) if is_stream else _response(model, text, record)


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _completion(call: Mapping[str, Any], text: str, record: dict[str, Any]) -> ModelResponse:
    message = {"role": "assistant", "content": text}
    choices = [{"index": place, "message": message, "finish_reason": REASON} for place in range(call.get("n") or 1)]
    return ModelResponse(model=call.get("model"), choices=choices, usage=_usage(), guardalign=record)


def _chunks(call: Mapping[str, Any], text: str, record: dict[str, Any]) -> Iterator[ModelResponseStream]:
    head = {"id": f"chatcmpl-guardalign-{uuid.uuid4().hex}", "created": int(time.time()), "model": call.get("model")}
    places = range(call.get("n") or 1)
    delta = {"role": "assistant", "content": text}
    first = [{"index": place, "delta": delta, "finish_reason": None} for place in places]
    last = [{"index": place, "delta": {}, "finish_reason": REASON} for place in places]
    yield ModelResponseStream(**head, choices=first, guardalign=record)
    yield ModelResponseStream(**head, choices=last)
    if (call.get("stream_options") or {}).get("include_usage"):
        yield ModelResponseStream(**head, choices=[], usage=_usage())


def _response_data(model: Any, text: str, record: dict[str, Any]) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item = {"id": f"msg_guardalign_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "status": "completed"}
    return {
        "id": f"resp_guardalign_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": model,
        "output": [{**item, "content": [part]}],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
        "guardalign": record,
    }


def _response(model: Any, text: str, record: dict[str, Any]) -> ResponsesAPIResponse:
    return ResponsesAPIResponse.model_validate(_response_data(model, text, record))


def _response_events(model: Any, text: str, record: dict[str, Any]) -> Iterator[Any]:
    completed = _response_data(model, text, record)
    (done,) = completed["output"]
    (part,) = done["content"]
    started = {**completed, "status": "in_progress", "output": []}
    at_item = {"output_index": 0, "item_id": done["id"]}
    at_part = {**at_item, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": started},
        {"type": "response.in_progress", "response": started},
        {"type": "response.output_item.added", "output_index": 0, "item": {**done, "content": []}},
        {"type": "response.content_part.added", **at_part, "part": {**part, "text": ""}},
        {"type": "response.output_text.delta", **at_part, "delta": text},
        {"type": "response.output_text.done", **at_part, "text": text},
        {"type": "response.content_part.done", **at_part, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
        {"type": "response.completed", "response": completed},
    ]
    for number, event in enumerate(events):
        kind = OpenAIResponsesAPIConfig.get_event_model_class(event["type"])
        yield kind.model_validate({**event, "sequence_number": number})


def _message(model: Any, text: str, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"msg_guardalign_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "refusal",
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
        "guardalign": record,
    }


def _message_events(message: dict[str, Any]) -> Iterator[bytes]:
    """The events of Anthropic's stream, encoded as LiteLLM hands them on."""
    ((block),) = message["content"]
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": block["text"]}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 0}},
        {"type": "message_stop"},
    ]
    for event in events:
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
