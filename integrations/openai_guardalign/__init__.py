"""GuardAlign for OpenAI: a client that sends no image the policy blocks; `.agents`, `.sessions` for openai-agents."""

from openai_guardalign.client import guard_client

__all__ = ["guard_client"]
