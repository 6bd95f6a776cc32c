"""LiteLLM as a library, without a proxy."""

from litellm_guardalign.library.functions import UnguardedCall, guarded

__all__ = ["UnguardedCall", "guarded"]
