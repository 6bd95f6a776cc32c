"""Warnings about models beside an agent's own, which its middleware does not guard.

Middleware knows one agent. What other packages put beside it is known only by what they leave in a request: their tools
and their messages. No package is imported for it, and a model that leaves nothing (of a tool, of a neighbour in a
swarm) is not found.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

from langchain.agents.middleware import ModelRequest
from langchain_core.messages import ToolMessage

from guardalign_guardrails.errors import UnguardedWarning
from langchain_guardalign.derived import GuardKeeping

_SUB_AGENT_MODULES: Final = ("deepagents.middleware.subagents", "deepagents.middleware.async_subagents")
_HANDED_OVER: Final = "__handoff_destination"
"""What langgraph-supervisor writes into the metadata of the message that hands a chat over."""


def warn_of_models_beside(request: ModelRequest[Any]) -> None:
    """Warn if a request shows that sub-agents or a supervisor have models that this middleware does not guard."""
    if not isinstance(request.model, GuardKeeping) and any(map(_calls_sub_agents, request.tools)):
        warnings.warn(
            "This agent has sub-agents, which do not inherit its GuardAlignMiddleware: images reach their models "
            "unchecked. Give the agent's model as GuardedChatModel(model=...), which they inherit; or put a guard into "
            "the middleware of every sub-agent, the built-in one too, and ignore UnguardedWarning.",
            UnguardedWarning,
            stacklevel=3,
        )
    last = request.messages[-1] if request.messages else None
    if isinstance(last, ToolMessage) and _HANDED_OVER in last.response_metadata:
        warnings.warn(
            "A supervisor's model had this chat before this agent, and GuardAlignMiddleware guards this agent alone. "
            "Give the supervisor's model as GuardedChatModel(model=...); if it is one, ignore UnguardedWarning.",
            UnguardedWarning,
            stacklevel=3,
        )


def _calls_sub_agents(tool: Any) -> bool:
    function = getattr(tool, "func", None) or getattr(tool, "coroutine", None)
    return getattr(function, "__module__", None) in _SUB_AGENT_MODULES
