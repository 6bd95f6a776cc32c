"""What a local model can do, as LangChain's agents and middleware read it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, cast

from langchain_core.language_models import ModelProfile

from guardalign_guardrails.decoding.lvlm import CalibratedLVLM


def profile_of(name: str, lvlm: CalibratedLVLM | None, *, can_fetch: bool) -> ModelProfile:
    """A model's profile.

    Args:
        name: Of the model.
        lvlm: The model; None before it is loaded, when less is known.
        can_fetch: Whether a guard fetches images given as URLs.
    """
    profile: dict[str, Any] = {
        "name": name,
        "open_weights": True,
        "text_inputs": True,
        "text_outputs": True,
        "audio_inputs": False,
        "video_inputs": False,
        "pdf_inputs": False,
        "pdf_tool_message": False,
        "image_outputs": False,
        "audio_outputs": False,
        "video_outputs": False,
        "structured_output": find_spec("xgrammar") is not None,
    }
    if lvlm is not None:
        is_multimodal, knows_tools = lvlm.is_multimodal, lvlm.knows_tools
        profile |= {
            "image_inputs": is_multimodal,
            "image_tool_message": is_multimodal,
            "image_url_inputs": is_multimodal and can_fetch,
            "tool_calling": knows_tools,
            "tool_choice": knows_tools and profile["structured_output"],
            "tool_call_streaming": knows_tools,
            **({} if lvlm.context_window is None else {"max_input_tokens": lvlm.context_window}),
        }
    # Older versions of LangChain warn of what they do not know.
    return cast("ModelProfile", {key: value for key, value in profile.items() if key in ModelProfile.__annotations__})
