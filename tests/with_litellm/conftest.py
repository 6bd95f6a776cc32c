"""Two real proxies in front of two real servers, once for all tests: starting one takes a quarter of a minute."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from litellm_proxies import MASTER_KEY, provider, proxies

from guardalign_guardrails.testing.colours import colour_policy
from litellm_guardalign.version import litellm_version
from with_langchain.openai_server import serving


@pytest.fixture(scope="session")
def servers():
    with serving() as openai_server, provider() as (url, received):
        yield SimpleNamespace(openai=openai_server, other_url=url, received=received)


def guardrail(
    folder: Path, name: str = "images", *, default_on: bool = False, policy: Any = None, **settings: Any
) -> dict:
    """One entry of a proxy's ``guardrails``."""
    path = folder / f"{name}.yaml"
    path.write_text((policy or colour_policy()).to_yaml())
    # Before 1.95 LiteLLM finds modules beside the config only.
    beside = litellm_version() < (1, 95)
    return {
        "guardrail_name": name,
        "litellm_params": {
            "guardrail": f"{'guardalign_guardrail' if beside else 'litellm_guardalign'}.ImageGuardrail",
            "mode": "pre_call",
            "default_on": default_on,
            "guardalign": {"policy": str(path), "encoder": "colour", "cache_dir": str(folder / "features"), **settings},
        },
    }


@pytest.fixture(scope="session")
def running(servers, tmp_path_factory):
    """The proxies: ``guarded`` as the docs set one up, ``choosing`` with guardrails that a request names."""
    folder = tmp_path_factory.mktemp("proxies")
    for name in ("guarded", "choosing"):
        (folder / name).mkdir()
        (folder / name / "guardalign_guardrail.py").write_text("from litellm_guardalign import ImageGuardrail\n")
    models = [
        ("gpt-4o", "openai/gpt-4o", servers.openai.base_url),
        ("careful", "openai/careful", servers.openai.base_url),
        ("claude", "anthropic/claude-sonnet-4-5", servers.other_url),
        ("other", "openai/other", f"{servers.other_url}/v1"),
        ("gemini", "gemini/gemini-2.0-flash", servers.other_url),
        ("jina", "jina_ai/jina-clip-v2", f"{servers.other_url}/v1"),
        ("cohere", "cohere/embed-v4.0", f"{servers.other_url}/v2/embed"),
        ("titan", "bedrock/amazon.titan-embed-image-v1", servers.other_url),
    ]
    aws = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "aws_region_name": "us-east-1"}
    common = {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {
                    "model": model,
                    "api_base": base,
                    "api_key": "k",
                    **({**aws, "aws_bedrock_runtime_endpoint": base} if name == "titan" else {}),
                },
            }
            for name, model, base in models
        ],
        "files_settings": [{"custom_llm_provider": "openai", "api_base": f"{servers.other_url}/v1", "api_key": "k"}],
        "general_settings": {
            "master_key": MASTER_KEY,
            "pass_through_endpoints": [{"path": "/through", "target": f"{servers.other_url}/v1/chat/completions"}],
        },
        "router_settings": {"num_retries": 0},
    }
    allowing = {"on_error": "allow"}
    configs = {
        "guarded": {
            **common,
            "guardrails": [guardrail(folder, default_on=True, on_violation="raise", route_to="careful")],
        },
        "choosing": {
            **common,
            "guardrails": [
                guardrail(folder, "refusing"),
                guardrail(folder, "noting", on_violation="notice"),
                guardrail(folder, "for-users", placement="user"),
                guardrail(folder, "monitoring", policy=colour_policy(mode="monitor")),
                guardrail(folder, "broken", encoder="colour-broken", on_violation="raise"),
                guardrail(folder, "broken-refusing", encoder="colour-broken"),
                guardrail(folder, "broken-open", encoder="colour-broken", policy=colour_policy(failure=allowing)),
            ],
        },
    }
    with proxies(configs, folder) as running:
        yield SimpleNamespace(**running)


@pytest.fixture
def upstream(servers):
    """The server that speaks OpenAI's API, as if nobody had asked it anything yet."""
    servers.openai.requests.clear()
    return servers.openai


@pytest.fixture
def received(servers):
    """What the other provider is sent from now on."""
    servers.received.clear()
    return servers.received


@pytest.fixture
def client(running):
    """OpenAI's own client, of the guarded proxy."""
    return openai.OpenAI(base_url=f"{running.guarded.url}/v1", api_key=MASTER_KEY, max_retries=0, timeout=60)


@pytest.fixture
def choosing(running):
    """OpenAI's own client, of the proxy with many guardrails."""
    return openai.OpenAI(base_url=f"{running.choosing.url}/v1", api_key=MASTER_KEY, max_retries=0, timeout=60)
