"""GuardAlign for OpenAI: a client whose requests carry no image that the policy blocks; `.agents` for openai-agents."""

from openai_guardalign.client import guard_client

__all__ = ["guard_client"]
