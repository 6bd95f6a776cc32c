"""LlamaIndex's tools as JSON schemas, and the calls in its messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool


def schemas_of(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """Tools as JSON schemas. The limit on descriptions is OpenAI's, not a local model's."""
    return [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]


def selections_of(message: ChatMessage) -> list[ToolSelection]:
    """The calls of a message, for an agent to run."""
    return [
        ToolSelection(
            tool_id=call.tool_call_id or "",
            tool_name=call.tool_name,
            tool_kwargs=call.tool_kwargs if isinstance(call.tool_kwargs, dict) else {},
        )
        for call in _calls(message)
    ]


def with_first_call(message: ChatMessage) -> ChatMessage:
    """The message without calls after the first; itself if there are none."""
    later = _calls(message)[1:]
    if not later:
        return message
    kept = [block for block in message.blocks if all(block is not call for call in later)]
    return message.model_copy(update={"blocks": kept})


def _calls(message: ChatMessage) -> list[ToolCallBlock]:
    return [block for block in message.blocks if isinstance(block, ToolCallBlock)]
