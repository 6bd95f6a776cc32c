"""LLMs and tools with a guard in front."""
