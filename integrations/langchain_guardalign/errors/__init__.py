"""`UnsafeContentError` in the forms in which LangChain and LangGraph let it pass."""
