"""GuardAlign for LiteLLM: with its proxy any client, in any language, gets the same image guard.

Name ``litellm_guardalign.ImageGuardrail`` in the proxy's config, or start a guarded proxy with
``python -m litellm_guardalign``. Where LiteLLM is used as a library, `guarded` wraps its functions.
"""

from typing import TYPE_CHECKING, Any

from litellm_guardalign.library import UnguardedCall, guarded

if TYPE_CHECKING:
    from litellm_guardalign.guardrail import ImageGuardrail

__all__ = ["ImageGuardrail", "UnguardedCall", "guarded"]


def __getattr__(name: str) -> Any:
    """Import the class when it is first asked for: LiteLLM takes seconds, and may call the network (PEP 562)."""
    if name == "ImageGuardrail":
        from litellm_guardalign.guardrail import ImageGuardrail

        return ImageGuardrail
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
