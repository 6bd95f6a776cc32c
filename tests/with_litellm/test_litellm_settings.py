"""What is set in the proxy's config; a mistake there must keep the proxy from starting, or it would serve unguarded."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from pathlib import Path

import pytest
import yaml

from guardalign_guardrails import GuardAlignError, Policy, UnguardedWarning
from guardalign_guardrails.detection.encoders import registry
from guardalign_guardrails.errors import PolicyError, SettingsError
from guardalign_guardrails.testing.colours import ColourEncoder, colour_policy
from litellm_guardalign.config import config_of
from litellm_guardalign.settings import GuardrailSettings

ROOT = Path(__file__).parents[2]
PRE_CALL = {"event_hook": "pre_call", "guardrail_name": "images", "default_on": True, "on_violation": None}


def read(settings=None, **params):
    return GuardrailSettings.read(settings, {**PRE_CALL, **params})


def test_nothing_set_is_the_shipped_policy_that_refuses():
    assert read() == GuardrailSettings()
    assert (read().policy, read().on_violation, read().placement) == (Policy.default(), "refuse", "auto")


@pytest.mark.parametrize(
    ("settings", "params", "message"),
    [
        ({"polcy": "a.yaml"}, {}, "polcy: Extra inputs"),
        ({"on_violation": "warn"}, {}, "on_violation: Input should be"),
        ({"placement": "nowhere"}, {}, "placement: Input should be"),
        ("a.yaml", {}, "guardalign: Input should be"),
        ({}, {"policy": "a.yaml"}, "policy: put it below 'guardalign:'"),
        ({}, {"encoder": "offline", "route_to": "m"}, "encoder, route_to: put it below"),
        ({}, {"run_in_parallel": True}, "run_in_parallel: leave it out"),
        ({}, {"scan_raw_request": True}, "scan_raw_request: leave it out"),
        ({}, {"stream_scope": "streaming"}, "stream_scope: leave it out"),
        ({}, {"stream_scope": {"pre_call": "non_streaming"}}, "stream_scope: leave it out"),
        ({}, {"event_hook": []}, "mode: must be 'pre_call'"),
        ({}, {"event_hook": "post_call"}, "mode: must be 'pre_call'"),
        ({}, {"event_hook": "logging_only"}, "mode: must be 'pre_call'"),
        ({}, {"event_hook": "during_call"}, "mode: must be 'pre_call'"),
        ({}, {"event_hook": ["pre_call", "post_call"]}, "mode: must be 'pre_call'"),
        ({}, {"event_hook": None}, "mode: must be 'pre_call'"),
        ({}, {"event_hook": {"tags": {"a": "logging_only"}, "default": "pre_call"}}, "mode: must be 'pre_call'"),
    ],
)
def test_a_mistake_is_an_error_for_which_litellm_stops(settings, params, message):
    """Of a ValueError or TypeError it would say a word in its log and start without the guardrail."""
    with pytest.raises(SettingsError, match=message) as caught:
        read(settings, **params)
    assert not isinstance(caught.value, ValueError | TypeError)


@pytest.mark.parametrize("event_hook", ["pre_call", ["pre_call"], {"tags": {"a": ["pre_call"]}, "default": "pre_call"}])
def test_every_way_to_write_the_mode_is_understood(event_hook):
    assert read({}, event_hook=event_hook) == GuardrailSettings()


@pytest.mark.parametrize(
    ("params", "gaps"),
    [
        ({}, []),
        ({"stream_scope": "both"}, []),
        ({"default_on": False}, ["default_on"]),
        ({"default_on": None}, ["default_on"]),
        ({"event_hook": {"tags": {"a": "pre_call"}}}, ["mode"]),
        ({"event_hook": {"tags": {"a": "pre_call"}, "default": "pre_call"}}, []),
    ],
)
def test_what_lets_requests_pass_that_do_not_ask_for_the_guardrail_is_a_warning(tmp_path, monkeypatch, params, gaps):
    pytest.importorskip("litellm", reason="LiteLLM has its own virtual environment: make test-litellm")
    from litellm_guardalign import ImageGuardrail

    monkeypatch.setitem(registry._PREFIXES, "colour", lambda rest, options: ColourEncoder())
    (tmp_path / "policy.yaml").write_text(colour_policy().to_yaml())
    settings = {"policy": str(tmp_path / "policy.yaml"), "encoder": "colour", "cache_dir": str(tmp_path)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnguardedWarning)
        guardrail = ImageGuardrail(guardalign=settings, **{**PRE_CALL, **params})
    found = [str(warning.message) for warning in caught if warning.category is UnguardedWarning]
    assert len(found) == len(gaps)
    assert all(f" {gap}: " in text for text, gap in zip(found, gaps, strict=True))
    # LiteLLM hands this one over after the guardrail was made.
    with pytest.raises(SettingsError, match="stream_scope"):
        guardrail.apply_stream_scope("streaming")
    guardrail.apply_stream_scope("both")


def test_a_policy_that_is_not_there_is_such_an_error_too(tmp_path):
    with pytest.raises(PolicyError):
        read({"policy": str(tmp_path / "none.yaml")})
    assert issubclass(GuardAlignError, Exception)
    assert not issubclass(GuardAlignError, ValueError | TypeError)


def test_equal_settings_share_a_guard(tmp_path, monkeypatch):
    """LiteLLM makes its guardrails twice; weights must not be loaded as often."""
    monkeypatch.setitem(registry._PREFIXES, "colour", lambda rest, options: ColourEncoder())
    policy = tmp_path / "policy.yaml"
    policy.write_text(colour_policy().to_yaml())
    settings = read({"policy": str(policy), "encoder": "colour", "cache_dir": str(tmp_path)})
    assert settings.guard is read({"policy": str(policy), "encoder": "colour", "cache_dir": str(tmp_path)}).guard
    assert pickle.loads(pickle.dumps(settings)).guard is settings.guard
    assert copy.deepcopy(settings).guard is settings.guard


def test_a_refusal_becomes_an_error_where_there_is_no_place_for_it():
    settings = read({"on_violation": "refuse", "route_to": "careful", "placement": "user"})
    assert settings.rules(can_refuse=False).on_violation == "raise"
    rules = settings.rules(can_refuse=True)
    assert (rules.on_violation, rules.route_to, rules.placement) == ("refuse", "careful", "user")
    assert read({"on_violation": "notice"}).rules(can_refuse=False).on_violation == "notice"


def test_the_config_of_a_guarded_server_names_it_its_models_and_the_guardrail_and_holds_no_key():
    settings = {"encoder": "open_clip:ViT-L-14/openai", "route_to": "b"}
    config = config_of("http://127.0.0.1:8000/v1", ["a", "b"], "os.environ/SOME_KEY", settings)
    (guardrail,) = config["guardrails"]
    assert [model["model_name"] for model in config["model_list"]] == ["a", "b"]
    assert config["model_list"][0]["litellm_params"] == {
        "model": "openai/a",
        "api_base": "http://127.0.0.1:8000/v1",
        "api_key": "os.environ/SOME_KEY",
    }
    assert guardrail["litellm_params"] == {
        "guardrail": "litellm_guardalign.ImageGuardrail",
        "mode": "pre_call",
        "default_on": True,
        "guardalign": {"encoder": "open_clip:ViT-L-14/openai", "route_to": "b"},
    }
    assert read(guardrail["litellm_params"]["guardalign"]).route_to == "b"


def test_the_example_and_the_page_show_settings_that_are_read_and_the_defaults_that_count(tmp_path, monkeypatch):
    # Where a proxy would be started: beside the policy file.
    (tmp_path / "examples").mkdir()
    for path in (tmp_path / "policy.yaml", tmp_path / "examples" / "policy.yaml"):
        path.write_text((ROOT / "examples" / "policy.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "litellm.md").read_text()
    example = yaml.safe_load((ROOT / "examples" / "litellm_proxy" / "config.yaml").read_text())
    for config in (example, yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])):
        (entry,) = config["guardrails"]
        params = entry["litellm_params"]
        settings = GuardrailSettings.read(params["guardalign"], {"event_hook": params["mode"]})
        assert params["guardrail"] == "litellm_guardalign.ImageGuardrail"
        assert params["default_on"] is True
        assert settings.route_to is not None
    assert settings.route_to in page
    assert example["guardrails"][0]["litellm_params"]["guardalign"]["route_to"] in {
        model["model_name"] for model in example["model_list"]
    }
    assert (ROOT / example["guardrails"][0]["litellm_params"]["guardalign"]["policy"]).exists()
    for name, field in GuardrailSettings.model_fields.items():
        (shown,) = re.findall(rf"^\| `{name}` \| (.*?) \|", page, re.MULTILINE)
        assert not isinstance(field.default, str) or shown == f"`{field.default}`"
