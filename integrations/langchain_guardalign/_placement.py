"""Where a model wants the safety prefix: which models take no system message.

A table of names, because no provider reports this; what it does not know gets a system message.
"""

from __future__ import annotations

import re
from typing import Any, Final

from langchain_core.language_models import BaseChatModel

from guardalign_guardrails.content.prefixing import Placement

# Matched anywhere in a name in lower case, so that a provider's path in front of it does not matter.
_WITHOUT_SYSTEM_MESSAGE: Final = (
    # Google's API answers "Developer instruction is not enabled", the chat templates of Gemma 1 and 2 raise; those of
    # Gemma 3 put a system message where the prefix goes anyway.
    re.compile(r"gemma"),
    re.compile(r"(^|[/:._-])o1-(mini|preview)"),
    # "Prompting with images is incompatible with system messages", say its template and the hosts that use it.
    re.compile(r"llama-?3[.p_-]?2.*vision"),
)


def placement_for(model_name: str | None) -> Placement:
    """``user`` for a model that is known to take no system message, else ``system``."""
    name = (model_name or "").lower()
    return "user" if any(pattern.search(name) for pattern in _WITHOUT_SYSTEM_MESSAGE) else "system"


def name_of(model: BaseChatModel, arguments: dict[str, Any] | None = None) -> str | None:
    """The name a model would be called by with some arguments, as it tells LangSmith; None if it does not say."""
    return model._get_ls_params(**(arguments or {})).get("ls_model_name")  # noqa: SLF001  there is no public way
