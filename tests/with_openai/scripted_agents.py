"""A model of openai-agents that answers from a script and keeps what it was given.

openai-agents has one of its own (`agents.testing`), but not in the releases that work with openai 2.
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from agents import Model, ModelResponse, Usage
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)


@dataclass(frozen=True)
class Call:
    """What the model was given once."""

    system_instructions: str | None
    input: Any


class ScriptedModel(Model):
    """Answers each call with the next step of its script, a list of output items."""

    def __init__(self, steps: list[list[Any]]) -> None:
        self._steps = list(steps)
        self.calls: tuple[Call, ...] = ()

    def extend(self, steps: list[list[Any]]) -> None:
        """Write more steps."""
        self._steps += steps

    def clear(self) -> None:
        """Leave out the steps that were not asked for."""
        self._steps.clear()

    @property
    def last_call(self) -> Call:
        return self.calls[-1]

    async def get_response(self, system_instructions: str | None, input: Any, *_: Any, **__: Any) -> ModelResponse:  # noqa: A002
        return ModelResponse(output=self._next(system_instructions, input), usage=Usage(), response_id="resp_1")

    async def stream_response(
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002  the SDK's name
        *_: Any,
        **__: Any,
    ) -> AsyncIterator[Any]:
        response = Response(
            id="resp_1",
            created_at=0,
            model="scripted",
            object="response",
            output=self._next(system_instructions, input),
            parallel_tool_calls=False,
            tool_choice="auto",
            tools=[],
        )
        yield ResponseCompletedEvent(type="response.completed", response=response, sequence_number=0)

    def _next(self, instructions: str | None, given: Any) -> list[Any]:
        self.calls = (*self.calls, Call(instructions, copy.deepcopy(given)))
        return self._steps.pop(0)


def assistant_message(text: str) -> ResponseOutputMessage:
    content = ResponseOutputText(text=text, type="output_text", annotations=[], logprobs=[])
    return ResponseOutputMessage(id="msg_1", type="message", role="assistant", status="completed", content=[content])


def function_call(name: str, *, call_id: str, **arguments: Any) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(name=name, arguments=json.dumps(arguments), call_id=call_id, type="function_call")
