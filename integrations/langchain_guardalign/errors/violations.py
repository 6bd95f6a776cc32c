"""`UnsafeContentError` as LangChain knows errors that it is no use to try again, or to show to a user.

LangChain's retries ask a `ModelError` whether it is worth one, and try all other errors three times; its middleware
then puts the error's text into the chat, or asks the next model. Within LangGraph there is something stronger, which
passes through all middleware and tool nodes: where that is loaded, it is used.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from langchain_core import exceptions

from guardalign_guardrails import UnsafeContentError, Verdict

if TYPE_CHECKING:
    from langchain_core.exceptions import ModelError as _ModelError
else:
    # Older ones know no such mark: there, a retry has to be told what not to retry.
    _ModelError = getattr(exceptions, "ModelError", exceptions.LangChainException)


class NotRetriedError(UnsafeContentError, _ModelError):
    """An `UnsafeContentError` that LangChain does not retry: the next attempt would find the same image."""

    is_retryable = False


def not_retried(verdict: Verdict) -> UnsafeContentError:
    """The error for what the policy lets not pass.

    Args:
        verdict: What was found and done.
    """
    if "langgraph.errors" not in sys.modules:
        return NotRetriedError(verdict)
    from langchain_guardalign.errors.turn_error import UnsafeTurnError

    return UnsafeTurnError(verdict)
