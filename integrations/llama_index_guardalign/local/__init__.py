"""The local model as a LlamaIndex LLM."""
