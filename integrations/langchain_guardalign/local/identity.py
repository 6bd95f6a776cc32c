"""What a local chat model is, for caches, traces and dumps, and what it can do, for LangChain's agents.

Nothing here loads weights or holds them. Fields are those of a `ChatGuardAlign`, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final, cast

from langchain_core.language_models import ModelProfile

from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from langchain_guardalign.local.calls import SETTINGS, settings_of
from langchain_guardalign.local.weights import Weights

LOADING_FIELDS: Final = (
    "revision",
    "dtype",
    "device_map",
    "quantization_config",
    "trust_remote_code",
    "local_files_only",
    "model_kwargs",
)
_SECRETS: Final = ("token", "use_auth_token")


def plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not JSON, as JSON, without secrets."""
    calibration, guard, quantization = fields["calibration"], fields["guard"], fields["quantization_config"]
    plain = {
        "calibration": calibration and calibration.model_dump(mode="json"),
        "prefix": fields["prefix"].model_dump(mode="json"),
        "model_kwargs": {name: value for name, value in fields["model_kwargs"].items() if name not in _SECRETS},
    }
    if hasattr(quantization, "to_dict"):
        plain["quantization_config"] = quantization.to_dict()
    if guard is not None:
        plain["guard"] = guard.model_dump(mode="json", exclude_none=True)
    return plain


def identifying_params(fields: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """All that an answer depends on, so that a cache mixes no guarded answers with others."""
    guard, plain = fields["guard"], plain_fields(fields)
    loading = {name: plain.get(name, fields[name]) for name in LOADING_FIELDS if name != "device_map"}
    # What a ready model was loaded with is known better by it.
    ready = {} if weights.ready is None else weights.ready.identity
    settings = settings_of(weights.settings, {name: fields[name] for name in SETTINGS})
    return {
        "model": fields["model"],
        **{name: ready.get(name, value) for name, value in loading.items()},
        **settings.model_dump(mode="json", fallback=str),
        "report": fields["report"],
        "guardalign": {
            "calibration": plain["calibration"],
            "prefix": plain["prefix"],
            "policy_fingerprint": None if guard is None else guard.policy.fingerprint,
            "encoder": None if guard is None else guard.encoder,
            "on_violation": fields["on_violation"],
        },
    }


def profile_of(name: str, lvlm: CalibratedLVLM | None, *, can_fetch: bool) -> ModelProfile:
    """What a model can do, as LangChain's agents and middleware read it.

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
