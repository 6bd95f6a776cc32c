"""GuardAlign for OpenAI: a client whose requests carry no picture that the policy forbids; `.agents` for their SDK."""

from openai_guardalign._client import guard

__all__ = ["guard"]
