"""``python -m litellm_guardalign check``: a line for each thing in a config that lets images pass unchecked."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

pytest.importorskip("litellm", reason="LiteLLM has its own virtual environment: make test-litellm")

import yaml

from guardalign_guardrails import SettingsError
from guardalign_guardrails.testing.colours import colour_policy
from litellm_guardalign.__main__ import main
from litellm_guardalign.check import read_config, report_of

ROOT = Path(__file__).parents[2]
PARAMS = "guardrails[0].litellm_params"


@pytest.fixture
def config(tmp_path):
    """A config of which everything is guarded."""
    (tmp_path / "policy.yaml").write_text(colour_policy().to_yaml())
    return {
        "model_list": [
            {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_key": "k"}} for name in ("a", "b")
        ],
        "guardrails": [
            {
                "guardrail_name": "images",
                "litellm_params": {
                    "guardrail": "litellm_guardalign.ImageGuardrail",
                    "mode": "pre_call",
                    "default_on": True,
                    "guardalign": {"policy": str(tmp_path / "policy.yaml"), "route_to": "b"},
                },
            }
        ],
        "router_settings": {"fallbacks": [{"a": ["b"]}], "num_retries": 0},
    }


def faults(config, folder):
    return list(report_of(config, folder).faults)


def changed(config, place, value):
    """The config with another value somewhere; ``None`` takes it away."""
    new = copy.deepcopy(config)
    *path, last = place
    holder = new
    for key in path:
        holder = holder[key]
    if value is None:
        del holder[last]
    else:
        holder[last] = value
    return new


def test_a_config_that_guards_everything_has_no_fault(config, tmp_path):
    report = report_of(config, tmp_path)
    assert report.faults == ()
    assert report.ways_in[:2] == ("model a: guarded by images", "model b: guarded by images")
    assert report.ways_in[-1].startswith("WebSockets")


GUARDRAIL = ("guardrails", 0, "litellm_params")


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        ((*GUARDRAIL, "mode"), None, f"{PARAMS}.mode: is missing; LiteLLM skips"),
        ((*GUARDRAIL, "mode"), [], f"{PARAMS}.mode: must be 'pre_call'"),
        ((*GUARDRAIL, "mode"), "during_call", f"{PARAMS}.mode: must be 'pre_call'"),
        ((*GUARDRAIL, "mode"), "post_call", f"{PARAMS}.mode: must be 'pre_call'"),
        ((*GUARDRAIL, "mode"), "logging_only", f"{PARAMS}.mode: must be 'pre_call'"),
        ((*GUARDRAIL, "mode"), ["pre_call", "post_call"], f"{PARAMS}.mode: must be 'pre_call'"),
        ((*GUARDRAIL, "mode"), {"tags": {"t": "pre_call"}}, f"{PARAMS}.mode: has tags and no default"),
        ((*GUARDRAIL, "default_on"), None, f"{PARAMS}.default_on: is not true"),
        ((*GUARDRAIL, "default_on"), False, f"{PARAMS}.default_on: is not true"),
        ((*GUARDRAIL, "run_in_parallel"), True, f"{PARAMS}.run_in_parallel: leave it out"),
        ((*GUARDRAIL, "scan_raw_request"), True, f"{PARAMS}.scan_raw_request: leave it out"),
        ((*GUARDRAIL, "stream_scope"), "streaming", f"{PARAMS}.stream_scope: leave it out"),
        ((*GUARDRAIL, "stream_scope"), {"pre_call": "non_streaming"}, f"{PARAMS}.stream_scope: leave it out"),
        ((*GUARDRAIL, "on_violation"), "sometimes", f"{PARAMS}.on_violation: "),
        ((*GUARDRAIL, "encoder"), "offline", f"{PARAMS}.encoder: put it below 'guardalign:'"),
        (
            (*GUARDRAIL, "guardrail"),
            "litellm_guardalign.ImageGard",
            f"{PARAMS}.guardrail: litellm_guardalign.ImageGard",
        ),
        ((*GUARDRAIL, "guardrail"), "images", f"{PARAMS}.guardrail: images is not there"),
        ((*GUARDRAIL, "guardalign", "polcy"), "a.yaml", f"{PARAMS}.guardalign: polcy: Extra inputs"),
        ((*GUARDRAIL, "guardalign", "policy"), "none.yaml", f"{PARAMS}.guardalign: "),
        ((*GUARDRAIL, "guardalign", "route_to"), "c", f"{PARAMS}.guardalign.route_to: c is no model"),
        (("guardrails", 0, "guardrail_name"), None, "guardrails[0].guardrail_name: is missing"),
        (("guardrails",), None, "guardrails: no entry has 'guardrail: litellm_guardalign.ImageGuardrail'"),
        (("guardrails",), [], "guardrails: no entry has"),
        (
            ("litellm_settings",),
            {"callbacks": ["litellm_guardalign.ImageGuardrail"]},
            "litellm_settings.callbacks[0]: LiteLLM does not look",
        ),
        (
            ("general_settings",),
            {"pass_through_endpoints": [{"path": "/v1/forms", "target": "https://example.org"}]},
            "general_settings.pass_through_endpoints: files in forms sent to /v1/forms",
        ),
        (("router_settings", "fallbacks"), [{"a": ["c"]}], "router_settings.fallbacks: c is no model"),
        (("router_settings", "default_fallbacks"), ["c"], "router_settings.default_fallbacks: c is no model"),
        (
            ("litellm_settings",),
            {"context_window_fallbacks": [{"a": [{"model": "c"}]}]},
            "litellm_settings.context_window_fallbacks: c is no model",
        ),
        (
            ("litellm_settings",),
            {"default_team_settings": [{"team_id": "t", "disable_global_guardrails": True}]},
            "litellm_settings.default_team_settings[0].disable_global_guardrails: requests of these keys or teams",
        ),
        (
            ("model_list", 1, "litellm_params", "guardrails"),
            ["imagse"],
            "model_list[1].litellm_params.guardrails: imagse is no guardrail",
        ),
        (("model_list", 1, "model_info"), {"mode": "realtime"}, "model_list[1]: images of realtime sessions"),
        (("mcp_servers",), {"files": {"url": "https://example.org"}}, "mcp_servers: images in results of tools"),
        (("assistant_settings",), {"custom_llm_provider": "openai"}, "assistant_settings: "),
        (
            ("policies",),
            {"p": {"pipeline": {"mode": "pre_call", "steps": [{"guardrail": "images", "on_fail": "allow"}]}}},
            "policies.p.pipeline: decides whether",
        ),
    ],
)
def test_one_line_for_each_fault(config, tmp_path, place, value, line):
    (fault,) = faults(changed(config, place, value), tmp_path)
    assert fault.startswith(line)


def test_a_broken_guardrail_guards_no_model(config, tmp_path):
    report = report_of(changed(config, (*GUARDRAIL, "mode"), None), tmp_path)
    assert report.ways_in[:2] == ("model a: NOT guarded", "model b: NOT guarded")


def test_a_guardrail_that_models_name_guards_these(config, tmp_path):
    config = changed(config, (*GUARDRAIL, "default_on"), False)
    config["model_list"][0]["litellm_params"]["guardrails"] = ["images"]
    report = report_of(config, tmp_path)
    assert report.ways_in[:2] == ("model a: guarded by images, which it names", "model b: NOT guarded")
    assert len(report.faults) == 1


def test_an_endpoint_that_is_passed_through_is_named(config, tmp_path):
    config["general_settings"] = {"pass_through_endpoints": [{"path": "/v1/forms", "target": "https://example.org"}]}
    assert "endpoint /v1/forms: JSON guarded by images, forms NOT guarded" in report_of(config, tmp_path).ways_in


def test_a_guardrail_of_another_class_with_the_same_name_is_a_fault(config, tmp_path):
    other = {"guardrail_name": "images", "litellm_params": {"guardrail": "presidio", "mode": "pre_call"}}
    config["guardrails"].append(other)
    (fault,) = faults(config, tmp_path)
    assert fault.startswith("guardrails[0].guardrail_name: another guardrail has it too")


@pytest.mark.parametrize(
    "moved",
    [
        lambda entry: {"guardrail": [entry]},
        lambda entry: {"litellm_settings": {"guardrails": [{"images": entry["litellm_params"]}]}},
        lambda entry: {"general_settings": {"guardrails": [entry]}},
    ],
)
def test_a_guardrail_under_a_wrong_key_is_two_faults(config, tmp_path, moved):
    (entry,) = config.pop("guardrails")
    found = faults({**config, **moved(entry)}, tmp_path)
    assert len(found) == 2
    assert found[0].startswith("guardrails: no entry has")
    assert "LiteLLM does not look for a guardrail here" in found[1]


def test_a_module_beside_the_config_may_hand_the_class_on(config, tmp_path):
    config = changed(config, (*GUARDRAIL, "guardrail"), "guardalign_guardrail.ImageGuardrail")
    (fault,) = faults(config, tmp_path)
    assert "is not there" in fault
    (tmp_path / "guardalign_guardrail.py").write_text("from litellm_guardalign import ImageGuardrail\n")
    assert faults(config, tmp_path) == []


def test_included_files_are_part_of_the_config(config, tmp_path):
    (tmp_path / "more").mkdir()
    guardrails = {"guardrails": config.pop("guardrails"), "include": ["models.yaml"]}
    (tmp_path / "more" / "guard.yaml").write_text(yaml.safe_dump(guardrails))
    (tmp_path / "more" / "models.yaml").write_text(yaml.safe_dump({"model_list": config.pop("model_list")[1:]}))
    config["model_list"] = [{"model_name": "a", "litellm_params": {"model": "openai/a"}}]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**config, "include": ["more/guard.yaml"]}))
    report = report_of(read_config(path), tmp_path)
    assert report.faults == ()
    assert report.ways_in[:2] == ("model a: guarded by images", "model b: guarded by images")
    path.write_text(yaml.safe_dump({"include": ["none.yaml"]}))
    with pytest.raises(SettingsError, match=r"none\.yaml is missing"):
        read_config(path)


def places(value, place=()):
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*place, key))


def test_whatever_stands_in_a_config_is_reported_on(config, tmp_path):
    config["general_settings"] = {"pass_through_endpoints": [{"path": "/x", "target": "https://example.org"}]}
    config["policies"] = {"p": {"pipeline": {"steps": [{"guardrail": "images"}]}}}
    config["model_list"][0] |= {"model_info": {"mode": "chat"}}
    config["model_list"][0]["litellm_params"]["guardrails"] = ["images"]
    odd = [1, True, "x", "a.b", [], {}, [None], [1, [2]], {"a": [None]}, {1: 2}, {"tags": None}]
    for place in [place for place in places(config) if place]:
        for value in odd:
            assert report_of(changed(config, place, value), tmp_path).ways_in


class TestCommand:
    @pytest.fixture
    def path(self, config, tmp_path):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def test_a_sound_config_is_status_0(self, path, capsys):
        assert main(["check", str(path)]) == 0
        printed = capsys.readouterr()
        assert "model a: guarded by images" in printed.out
        assert printed.err == ""

    @pytest.mark.parametrize("command", ["check", "start"])
    def test_a_fault_is_status_1_and_nothing_starts(self, config, path, capsys, command):
        path.write_text(yaml.safe_dump(changed(config, (*GUARDRAIL, "mode"), None)))
        assert main([command, str(path)]) == 1
        assert capsys.readouterr().err.splitlines()[0].startswith(f"fault: {PARAMS}.mode: is missing")

    def test_what_is_meant_so_may_be_accepted(self, config, path, capsys):
        path.write_text(yaml.safe_dump({**config, "mcp_servers": {"files": {"url": "https://example.org"}}}))
        assert main(["check", str(path)]) == 1
        assert main(["check", str(path), "--accept", "mcp_servers"]) == 0
        assert "accepted: mcp_servers" in capsys.readouterr().out

    @pytest.mark.parametrize("text", [None, "- a\n", "a: [\n"])
    def test_what_is_no_config_is_status_2(self, tmp_path, capsys, text):
        path = tmp_path / "none.yaml"
        if text is not None:
            path.write_text(text)
        assert main(["check", str(path)]) == 2
        assert "none.yaml" in capsys.readouterr().err

    def test_a_config_and_options_for_a_server_do_not_go_together(self, path, capsys):
        assert main(["start", str(path), "--policy", "other.yaml"]) == 2
        assert "--policy" in capsys.readouterr().err
        assert main(["start"]) == 2
        assert "--upstream" in capsys.readouterr().err

    def test_a_config_that_the_command_writes_is_sound(self, tmp_path):
        assert main(["--upstream", "https://example.org/v1", "--model", "a", "--write", str(tmp_path)]) == 0
        assert main(["check", str(tmp_path / "config.yaml")]) == 0

    def test_so_is_the_example(self, monkeypatch):
        monkeypatch.chdir(ROOT)
        assert main(["check", "examples/litellm_proxy/config.yaml"]) == 0
