"""GuardAlign for LlamaIndex: local models with calibrated attention, and guards for what images pass through an app."""

from typing import TYPE_CHECKING, Any

from guardalign_guardrails.guarding.settings import GuardSettings
from llama_index_guardalign.chat.guarded_llm import GuardedLLM
from llama_index_guardalign.chat.screening import ScreenedChat, ascreen_chat, screen_chat
from llama_index_guardalign.chat.tool_guard import guard_tool
from llama_index_guardalign.chat.workflow import CheckImages, ImagesBlocked, ImagesPassed, add_guard_step
from llama_index_guardalign.events import GuardVerdictEvent
from llama_index_guardalign.nodes.postprocessor import ImageGuardPostprocessor
from llama_index_guardalign.nodes.query_image import acheck_query_image, check_query_image
from llama_index_guardalign.nodes.reader import GuardedReader
from llama_index_guardalign.nodes.transform import ImageGuardTransform
from llama_index_guardalign.redaction import RedactingEventHandler, RedactingSpanHandler, redact_traces

if TYPE_CHECKING:
    from llama_index_guardalign.local.lvlm import GuardAlignLVLM

__all__ = [
    "CheckImages",
    "GuardAlignLVLM",
    "GuardSettings",
    "GuardVerdictEvent",
    "GuardedLLM",
    "GuardedReader",
    "ImageGuardPostprocessor",
    "ImageGuardTransform",
    "ImagesBlocked",
    "ImagesPassed",
    "RedactingEventHandler",
    "RedactingSpanHandler",
    "ScreenedChat",
    "acheck_query_image",
    "add_guard_step",
    "ascreen_chat",
    "check_query_image",
    "guard_tool",
    "redact_traces",
    "screen_chat",
]


def __getattr__(name: str) -> Any:
    """Import what needs transformers when it is first asked for (PEP 562)."""
    if name == "GuardAlignLVLM":
        from llama_index_guardalign.local.lvlm import GuardAlignLVLM

        return GuardAlignLVLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
