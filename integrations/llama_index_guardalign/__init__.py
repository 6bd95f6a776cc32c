"""GuardAlign for LlamaIndex: local models with calibrated attention, and guards for what images pass through an app."""

from typing import TYPE_CHECKING, Any

from llama_index_guardalign._chat_screening import ScreenedChat, ascreen_chat, screen_chat
from llama_index_guardalign._events import GuardVerdictEvent
from llama_index_guardalign._guard_settings import GuardSettings
from llama_index_guardalign._guarded_llm import GuardedLLM
from llama_index_guardalign._postprocessor import ImageGuardPostprocessor
from llama_index_guardalign._query_engine import GuardedQueryEngine
from llama_index_guardalign._reader import GuardedReader
from llama_index_guardalign._redaction import RedactingEventHandler, RedactingSpanHandler, redact_traces
from llama_index_guardalign._retriever import GuardedRetriever
from llama_index_guardalign._tool_guard import guard_tool
from llama_index_guardalign._transform import ImageGuardTransform
from llama_index_guardalign._workflow import CheckImages, ImagesBlocked, ImagesPassed, add_guard_step

if TYPE_CHECKING:
    from llama_index_guardalign._local_lvlm import GuardAlignLVLM

__all__ = [
    "CheckImages",
    "GuardAlignLVLM",
    "GuardSettings",
    "GuardVerdictEvent",
    "GuardedLLM",
    "GuardedQueryEngine",
    "GuardedReader",
    "GuardedRetriever",
    "ImageGuardPostprocessor",
    "ImageGuardTransform",
    "ImagesBlocked",
    "ImagesPassed",
    "RedactingEventHandler",
    "RedactingSpanHandler",
    "ScreenedChat",
    "add_guard_step",
    "ascreen_chat",
    "guard_tool",
    "redact_traces",
    "screen_chat",
]


def __getattr__(name: str) -> Any:
    """Import what needs transformers when it is first asked for (PEP 562)."""
    if name == "GuardAlignLVLM":
        from llama_index_guardalign._local_lvlm import GuardAlignLVLM

        return GuardAlignLVLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
