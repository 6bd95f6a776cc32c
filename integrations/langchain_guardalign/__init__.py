"""GuardAlign for LangChain: check, mask, route or refuse the images of chats, agents and documents."""

from typing import TYPE_CHECKING, Any

from langchain_guardalign.chat.guarded_model import GuardedChatModel
from langchain_guardalign.documents.components import ImageDocumentCompressor, ImageDocumentTransformer
from langchain_guardalign.runnable import ImageGuard
from langchain_guardalign.screening import GuardReport

if TYPE_CHECKING:
    from langchain_guardalign.agents.middleware import GuardAlignMiddleware
    from langchain_guardalign.local.model import ChatGuardAlign

__all__ = [
    "ChatGuardAlign",
    "GuardAlignMiddleware",
    "GuardReport",
    "GuardedChatModel",
    "ImageDocumentCompressor",
    "ImageDocumentTransformer",
    "ImageGuard",
]

# The first two need more than langchain-core: LangChain itself, or transformers. The others are what LangChain's
# ``load`` looks for in dumps.
_LATER = {
    "ChatGuardAlign": "langchain_guardalign.local.model",
    "GuardAlignMiddleware": "langchain_guardalign.agents.middleware",
    "GuardedAlternatives": "langchain_guardalign.derived",
    "GuardedBinding": "langchain_guardalign.derived",
    "GuardedFallbacks": "langchain_guardalign.derived",
    "GuardedFields": "langchain_guardalign.derived",
    "GuardedSequence": "langchain_guardalign.derived",
}


def __getattr__(name: str) -> Any:
    """Import what is seldom needed, or needs more than langchain-core, when it is first used (PEP 562)."""
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
