"""GuardAlign for LlamaIndex: local models with calibrated attention, and guards for the images that an app handles."""

from typing import TYPE_CHECKING, Any

from llama_index_guardalign.chat.guarded_llm import GuardedLLM
from llama_index_guardalign.chat.memory import GuardedMemory
from llama_index_guardalign.chat.screening import ScreenedMessages, ascreen_chat, screen_chat
from llama_index_guardalign.chat.tool_guard import guard_tool
from llama_index_guardalign.events import GuardVerdictEvent
from llama_index_guardalign.nodes.postprocessor import ImageGuardPostprocessor
from llama_index_guardalign.nodes.query_image import acheck_query_image, check_query_image
from llama_index_guardalign.nodes.reader import GuardedReader
from llama_index_guardalign.nodes.transform import ImageGuardTransform
from llama_index_guardalign.redaction import redact_traces
from llama_index_guardalign.unguarded import warn_unguarded

if TYPE_CHECKING:
    from llama_index_guardalign.local.lvlm import GuardAlignLVLM

__all__ = [
    "GuardAlignLVLM",
    "GuardVerdictEvent",
    "GuardedLLM",
    "GuardedMemory",
    "GuardedReader",
    "ImageGuardPostprocessor",
    "ImageGuardTransform",
    "ScreenedMessages",
    "acheck_query_image",
    "ascreen_chat",
    "check_query_image",
    "guard_tool",
    "redact_traces",
    "screen_chat",
    "warn_unguarded",
]


def __getattr__(name: str) -> Any:
    """Import what needs transformers when it is first asked for (PEP 562)."""
    if name == "GuardAlignLVLM":
        from llama_index_guardalign.local.lvlm import GuardAlignLVLM

        return GuardAlignLVLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
