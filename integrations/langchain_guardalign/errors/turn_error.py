"""The error that ends an agent's turn.

Middleware that retries, asks another model or shows errors to the model catches every exception but LangGraph's own
signals. A blocked turn is no failure that any of them could mend, and its error text is not for users.
"""

from __future__ import annotations

from langgraph.errors import GraphBubbleUp

from guardalign_guardrails import UnsafeContentError


class UnsafeTurnError(UnsafeContentError, GraphBubbleUp):
    """An `UnsafeContentError` that passes through LangChain's middleware and tool nodes to the caller of the agent."""
