"""A local model's life: the guard it is given, copies, other processes, forks."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import pytest
from families import family

from guardalign_guardrails import Guard, GuardSettings, NotPicklable, SettingsError
from guardalign_guardrails.decoding.attention.adapter import AttentionAdapter
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.images import ImageLimits
from guardalign_guardrails.testing.colours import ColourEncoder, colour_guard, colour_policy

SETTINGS = GenerationSettings(temperature=0, max_new_tokens=4)
QUESTION = "Which colour is it?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny language model."""
    one, folder = family("Llama 3"), tmp_path_factory.mktemp("tiny")
    one.model().save_pretrained(folder)
    one.processor.save_pretrained(folder)
    return folder


def loaded(folder, **settings):
    return CalibratedLVLM.from_pretrained(str(folder), **{"settings": SETTINGS, **settings})


def given(**settings):
    one = family("Llama 3")
    return CalibratedLVLM(one.model(), one.processor, settings=SETTINGS, **settings)


class TestGuard:
    def test_whatever_stands_for_a_guard_is_taken(self, tmp_path):
        path = tmp_path / "policy.yaml"
        path.write_text(colour_policy().to_yaml())
        guard = colour_guard(tmp_path)
        for each in (path, str(path), colour_policy(), GuardSettings(policy=path), GuardSettings.of(guard), guard):
            assert given(guard=each).guard.policy == colour_policy()
        assert given(guard=guard).guard is guard
        assert given().guard is None

    def test_anything_else_is_an_error(self):
        with pytest.raises(SettingsError, match="not as int"):
            given(guard=7)

    def test_another_one_counts_from_then_on(self, tmp_path):
        lvlm, guard = given(), colour_guard(tmp_path)
        lvlm.guard = guard
        assert lvlm.guard is guard
        lvlm.guard = None
        assert lvlm.guard is None


class TestCopies:
    @pytest.mark.parametrize("how", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
    def test_share_the_model_and_the_guard(self, tmp_path, how):
        lvlm = given(guard=colour_guard(tmp_path))
        other = how(lvlm)
        assert other is not lvlm
        assert (other.model, other.processor, other.guard) == (lvlm.model, lvlm.processor, lvlm.guard)
        other.guard = None
        assert lvlm.guard is not None
        assert other.chat(QUESTION).text == lvlm.chat(QUESTION).text


class TestPickles:
    @pytest.mark.parametrize("is_used", [False, True], ids=["before use", "after use"])
    def test_a_model_that_was_loaded_by_name_is_loaded_again(self, folder, tmp_path, is_used):
        settings = {
            "calibration": CalibrationConfig.fixed(1.0, layers=(0, 1)),
            "prefix": SafetyPrefix(text="Be kind.", placement="system"),
            "guard": GuardSettings(policy=colour_policy(), cache_dir=tmp_path),
            "on_violation": "notice",
            "context_window": 500,
            "limits": ImageLimits(max_pixels=99),
        }
        lvlm = loaded(folder, **settings)
        if is_used:
            lvlm.chat(QUESTION)
        data = pickle.dumps(lvlm)
        assert len(data) < 10_000
        other = pickle.loads(data)
        assert other.model is not lvlm.model
        assert other.identity == lvlm.identity
        assert (other.settings, other.context_window, other.limits) == (SETTINGS, 500, ImageLimits(max_pixels=99))
        assert other.guard.policy == lvlm.guard.policy
        assert other.chat(QUESTION) == lvlm.chat(QUESTION)

    def test_a_variant_stays_one(self, folder):
        variant = loaded(folder).variant(calibration=None, prefix=SafetyPrefix(text=""))
        other = pickle.loads(pickle.dumps(variant))
        assert (other.calibration, other.prefix) == (None, SafetyPrefix(text=""))

    def test_a_model_that_was_given_is_an_error_that_names_it(self):
        with pytest.raises(NotPicklable, match="model") as caught:
            pickle.dumps(given())
        assert caught.value.member == "model"

    def test_a_guard_that_does_not_pickle_is_named_and_never_left_behind(self, folder, tmp_path):
        class Encoder(ColourEncoder):
            """A class that cannot be found by its name."""

        guard = Guard(colour_policy(), Encoder(), cache_dir=tmp_path)
        with pytest.raises(NotPicklable) as caught:
            pickle.dumps(loaded(folder, guard=guard))
        assert caught.value.member == "encoder"

    def test_a_model_with_an_adapter_is_an_error(self, folder):
        lvlm = loaded(folder)
        adapted = CalibratedLVLM(lvlm.model, lvlm.processor, adapter=AttentionAdapter.find(lvlm.model))
        adapted._loading = lvlm._loading
        with pytest.raises(NotPicklable) as caught:
            pickle.dumps(adapted)
        assert caught.value.member == "adapter"


FORKED = """
import os, sys
from families import family
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.errors import ForkedProcessError
one = family("Llama 3")
lvlm = CalibratedLVLM(
    one.model(), one.processor, calibration=None, settings=GenerationSettings(temperature=0, max_new_tokens=2)
)
def answer():
    return {
        "chat": lambda: lvlm.chat("Hi"),
        "count": lambda: lvlm.count_tokens("Hi"),
        "stream": lambda: list(lvlm.stream("Hi")),
        "batch": lambda: lvlm.batch(["Hi"]),
    }[sys.argv[2]]()
if sys.argv[1] == "used":
    answer()
if os.fork() == 0:
    try:
        answer()
        os._exit(10)
    except ForkedProcessError:
        os._exit(11)
os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize(
    ("state", "way", "code"),
    [
        ("used", "chat", 11),
        ("fresh", "chat", 10),
        # Each takes seconds to import PyTorch, and all ways begin at one place.
        *(pytest.param("used", way, 11, marks=pytest.mark.slow) for way in ("stream", "batch", "count")),
    ],
)
def test_after_a_fork_a_used_model_is_an_error_and_a_fresh_one_works(state, way, code):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FORKED, state, way]
    assert subprocess.run(command, timeout=120, check=False, env=environment).returncode == code
