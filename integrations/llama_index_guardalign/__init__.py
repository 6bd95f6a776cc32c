"""GuardAlign for LlamaIndex."""
