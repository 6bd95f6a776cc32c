"""The name by which a provider knows a chat model."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel


def name_of(model: BaseChatModel, arguments: dict[str, Any] | None = None) -> str | None:
    """The name a model would be called by with some arguments, as it tells LangSmith; None if it does not say."""
    return model._get_ls_params(**(arguments or {})).get("ls_model_name")  # noqa: SLF001  there is no public way
