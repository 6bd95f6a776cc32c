"""The config of a LiteLLM proxy that guards one OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from litellm_guardalign.settings import KEY
from litellm_guardalign.version import litellm_version

NAME: Final = "config.yaml"

_CLASS: Final = "litellm_guardalign.ImageGuardrail"
# Before it, LiteLLM looks for a guardrail's module beside the config and nowhere else.
_IMPORTS_SINCE: Final = (1, 95)
_BESIDE: Final = "guardalign_guardrail"


def config_of(upstream: str, models: Sequence[str], api_key: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config as plain data.

    Args:
        upstream: Base URL of the server, as clients of OpenAI's API want it.
        models: Names of its models; clients of the proxy use the same.
        api_key: The server's key, or ``os.environ/NAME`` for one that is in the environment.
        settings: Of the guardrail, as `GuardrailSettings` reads them.
    """
    params = {
        "guardrail": _CLASS,
        "mode": "pre_call",
        "default_on": True,
        KEY: dict(settings),
    }
    return {
        "model_list": [
            {
                "model_name": model,
                "litellm_params": {"model": f"openai/{model}", "api_base": upstream, "api_key": api_key},
            }
            for model in models
        ],
        "guardrails": [{"guardrail_name": "guardalign", "litellm_params": params}],
    }


def write(config: dict[str, Any], folder: Path) -> Path:
    """Write a config, and the module beside it by which an older LiteLLM finds the guardrail.

    Returns:
        The config file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if litellm_version() < _IMPORTS_SINCE:
        module, _, name = _CLASS.rpartition(".")
        (folder / f"{_BESIDE}.py").write_text(f"from {module} import {name}\n", encoding="utf-8")
        for guardrail in config["guardrails"]:
            guardrail["litellm_params"]["guardrail"] = f"{_BESIDE}.{name}"
    path = folder / NAME
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
