"""GuardAlign for LlamaIndex: local models with calibrated attention, and guards for what images pass through an app."""

from typing import TYPE_CHECKING, Any

from llama_index_guardalign._events import GuardVerdictEvent
from llama_index_guardalign._guard_settings import GuardSettings

if TYPE_CHECKING:
    from llama_index_guardalign._local_lvlm import GuardAlignLVLM

__all__ = ["GuardAlignLVLM", "GuardSettings", "GuardVerdictEvent"]


def __getattr__(name: str) -> Any:
    """Import what needs transformers when it is first asked for (PEP 562)."""
    if name == "GuardAlignLVLM":
        from llama_index_guardalign._local_lvlm import GuardAlignLVLM

        return GuardAlignLVLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
