"""The local model as a LangChain chat model."""
