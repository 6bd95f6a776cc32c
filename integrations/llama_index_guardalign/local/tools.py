"""LlamaIndex's tools as JSON schemas, and a local model's calls as LlamaIndex's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool

from guardalign_guardrails.decoding.chat.messages import ToolCall


def schemas_of(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """Tools as JSON schemas. The limit on descriptions is OpenAI's, not a local model's."""
    return [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]


def blocks_of(calls: Sequence[ToolCall]) -> list[ToolCallBlock]:
    """Calls as blocks of a message."""
    return [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments)) for call in calls
    ]


def selections_of(message: ChatMessage) -> list[ToolSelection]:
    """The calls of a message, for whoever runs the tools."""
    return [
        ToolSelection(tool_id=block.tool_call_id or "", tool_name=block.tool_name, tool_kwargs=_arguments(block))
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]


def with_first_call(message: ChatMessage) -> ChatMessage:
    """The message without calls after the first; itself if there is none."""
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if len(calls) < 2:
        return message
    kept = [block for block in message.blocks if not isinstance(block, ToolCallBlock) or block is calls[0]]
    return message.model_copy(update={"blocks": kept})


def _arguments(block: ToolCallBlock) -> dict[str, Any]:
    return block.tool_kwargs if isinstance(block.tool_kwargs, dict) else cast("dict[str, Any]", {})
