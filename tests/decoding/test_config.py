"""What a configuration says is what it is, also after a dump."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix

FRACTIONS = st.floats(0, 1)
NUMBERS = st.none() | st.lists(st.integers(0, 99), min_size=1, max_size=4).map(tuple)
SETTINGS = {
    "gamma": st.floats(0, 1e3),
    "layers": st.tuples(FRACTIONS, FRACTIONS).filter(lambda band: band[0] < band[1]),
    "layer_indices": NUMBERS,
    "heads": NUMBERS,
    "queries": st.sampled_from(["instruction", "instruction+generated"]),
    "form": st.sampled_from(["gate", "paper"]),
    "target": st.none() | st.just("shallow") | FRACTIONS,
}
FIXED = {name: values for name, values in SETTINGS.items() if name not in ("gamma", "target")}
# Some settings are given and some are not: what was not given must come back too.
GIVEN = st.fixed_dictionaries({}, optional=SETTINGS).map(lambda settings: CalibrationConfig(**settings))
OF_THE_PAPER = st.fixed_dictionaries({"gamma": SETTINGS["gamma"]}, optional=FIXED).map(
    lambda settings: CalibrationConfig.fixed(**settings)
)
CONFIGS = GIVEN | OF_THE_PAPER
EXCLUDED = st.fixed_dictionaries(
    {name: st.booleans() for name in ("exclude_unset", "exclude_defaults", "exclude_none")}
)


@given(CONFIGS, EXCLUDED)
def test_a_configuration_is_itself_after_a_dump_whatever_the_dump_leaves_out(config, excluded):
    assert CalibrationConfig.model_validate(config.model_dump(**excluded)) == config
    assert CalibrationConfig.model_validate(config.model_dump(mode="json", **excluded)) == config
    assert CalibrationConfig.model_validate_json(config.model_dump_json(**excluded)) == config
    assert CalibrationConfig.model_validate(json.loads(config.model_dump_json(**excluded))) == config


def test_the_schemas_defaults_are_the_defaults():
    properties = CalibrationConfig.model_json_schema()["properties"]
    defaults = {name: schema["default"] for name, schema in properties.items()}
    assert defaults == CalibrationConfig().model_dump(mode="json")
    assert (CalibrationConfig().gamma, CalibrationConfig().target, CalibrationConfig().queries) == (
        4.0,
        0.3,
        "instruction",
    )


def test_each_setting_means_the_same_whatever_else_is_given():
    assert CalibrationConfig(gamma=2.0).target == CalibrationConfig().target
    assert CalibrationConfig(target=None).gamma == CalibrationConfig().gamma


def test_a_fixed_gamma_is_the_papers_mode():
    config = CalibrationConfig.fixed(0.5, layers=(0, 0.5))
    assert (config.gamma, config.target, config.queries, config.layers) == (
        0.5,
        None,
        "instruction+generated",
        (0, 0.5),
    )
    assert CalibrationConfig.fixed(0.5, queries="instruction").queries == "instruction"


def test_a_fixed_gamma_takes_no_target():
    with pytest.raises(TypeError, match="target"):
        CalibrationConfig.fixed(0.5, target=0.3)
    with pytest.raises(ValidationError):
        CalibrationConfig.fixed(-1)


@given(st.builds(SafetyPrefix, text=st.text(), placement=st.sampled_from(["system", "user", "response"])), EXCLUDED)
def test_a_prefix_is_itself_after_a_dump(prefix, excluded):
    assert SafetyPrefix.model_validate_json(prefix.model_dump_json(**excluded)) == prefix
