"""LangChain's messages to the local model's, and its answers back to LangChain's.

Content stays the plain data it is: the core opens images, and nothing else does. What calibration and guard did goes
into ``response_metadata``, which no chat model sends anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call, tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from guardalign_guardrails.decoding.chat.answer import Answer, AnswerChunk, TokenLogprob
from guardalign_guardrails.decoding.chat.messages import Message, ToolCall
from guardalign_guardrails.decoding.config import CalibrationConfig
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from langchain_guardalign.chat.refusal import FINISH_REASON
from langchain_guardalign.messages import role
from langchain_guardalign.rewrite import with_verdicts

CALIBRATION_KEY: Final = "calibration"
"""Where in an answer's ``response_metadata`` the effect of calibration is."""


def chat_of(messages: Sequence[BaseMessage]) -> list[Message]:
    """The messages as the core takes them."""
    return [
        Message(
            role(message),
            message.content,
            tuple(ToolCall(call["name"], call["args"], call["id"] or "") for call in message.tool_calls)
            if isinstance(message, AIMessage)
            else (),
            message.tool_call_id if isinstance(message, ToolMessage) else None,
            message.name,
        )
        for message in messages
    ]


def message_of(answer: Answer, lvlm: CalibratedLVLM, place: int = 0) -> BaseMessage:
    """A whole answer.

    Args:
        answer: Of the core.
        lvlm: Who answered.
        place: Its place among the answers that share its calibration report.
    """
    message = AIMessage(
        answer.text,
        tool_calls=[tool_call(name=one.name, args=dict(one.arguments), id=_new_id()) for one in answer.tool_calls],
        response_metadata={**_metadata(answer, lvlm, place), **_logprobs(answer.logprobs)},
        usage_metadata=_usage(answer),
    )
    return with_verdicts(message, answer.verdicts)


def chunk_of(chunk: AnswerChunk, lvlm: CalibratedLVLM) -> ChatGenerationChunk | None:
    """A chunk of an answer; None if there is nothing new in it."""
    answer = chunk.answer
    if answer is None:
        if not chunk.text and not chunk.logprobs:
            return None
        metadata = _logprobs(chunk.logprobs or None)
        return ChatGenerationChunk(message=AIMessageChunk(content=chunk.text, response_metadata=metadata))
    message = AIMessageChunk(
        content=chunk.text,
        tool_call_chunks=[
            tool_call_chunk(
                name=one.name,
                args=json.dumps(dict(one.arguments), ensure_ascii=False),
                id=_new_id(),
                index=place,
            )
            for place, one in enumerate(answer.tool_calls)
        ],
        response_metadata={**_metadata(answer, lvlm, 0), **_logprobs(chunk.logprobs or None)},
        usage_metadata=_usage(answer),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=with_verdicts(message, answer.verdicts))


def _new_id() -> str:
    # Nine letters or digits are all that some chat templates take back.
    return uuid4().hex[:9]


def _usage(answer: Answer) -> UsageMetadata:
    usage = answer.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, total_tokens=usage.total_tokens
    )


def _metadata(answer: Answer, lvlm: CalibratedLVLM, place: int) -> dict[str, Any]:
    reason: str = FINISH_REASON if answer.finish_reason == "refusal" else answer.finish_reason
    config = lvlm.calibration
    return {
        "model_name": lvlm.name,
        "finish_reason": reason,
        **({} if config is None or answer.calibration is None else {CALIBRATION_KEY: _summary(answer, config, place)}),
    }


def _summary(answer: Answer, config: CalibrationConfig, place: int) -> dict[str, Any]:
    """What calibration did to one answer; shares of attention by layer if they were measured."""
    report = answer.calibration
    if report is None:
        return {}
    measured = {"gammas": report.gamma, "shares_before": report.before, "shares_after": report.after}
    return {
        "gamma": config.gamma,
        **({} if config.target is None else {"target": config.target}),
        "layers": list(report.layers),
        **{
            name: {str(layer): values[place] for layer, values in by_layer.items()}
            for name, by_layer in measured.items()
            if by_layer
        },
    }


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any]:
    """As OpenAI writes them; nothing if they were not asked for."""
    if tokens is None:
        return {}
    content = [
        {
            "token": token.token,
            "logprob": token.logprob,
            "top_logprobs": [{"token": text, "logprob": value} for text, value in token.top],
        }
        for token in tokens
    ]
    return {"logprobs": {"content": content}}
