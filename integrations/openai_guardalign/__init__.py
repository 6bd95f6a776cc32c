"""GuardAlign for OpenAI: a client whose requests carry no image that the policy forbids; `.agents` for their SDK."""

from openai_guardalign.client import guard

__all__ = ["guard"]
