"""Where a chat model wants the safety prefix, by the name under which its provider knows it."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel

from guardalign_guardrails.content.chat import Placement, PlacementSetting, placement_for


def name_of(model: BaseChatModel, arguments: dict[str, Any] | None = None) -> str | None:
    """The name a model would be called by with some arguments, as LangSmith gets it; None if it does not say."""
    return model._get_ls_params(**(arguments or {})).get("ls_model_name")  # noqa: SLF001  there is no public way


def placement_of(setting: PlacementSetting, model: BaseChatModel, arguments: dict[str, Any] | None = None) -> Placement:
    """A component's placement for the model that answers."""
    return placement_for(None if setting != "auto" else name_of(model, arguments), setting)
