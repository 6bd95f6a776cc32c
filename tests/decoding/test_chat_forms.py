"""Chats in the forms people write them, and what of their content a model is given."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from guardalign_guardrails.decoding.chat.admission import admit
from guardalign_guardrails.decoding.chat.messages import Message, ToolCall, messages_of
from guardalign_guardrails.decoding.chat.settings import GenerationSettings, generation_config
from guardalign_guardrails.decoding.config import CalibrationConfig
from guardalign_guardrails.errors import GuardAlignError, ImageDecodeError, PromptError
from guardalign_guardrails.images import ImageLimits
from guardalign_guardrails.testing.colours import painted

IMAGE = {"type": "image", "image": painted()}


def parts(content):
    ((message,),) = [
        admission.messages for admission in admit(None, [[Message("user", content)]], "refuse", ImageLimits())
    ]
    return ["image" if isinstance(part, Image.Image) else part for part in message.parts]


def test_words_are_a_chat_of_one_user():
    assert messages_of("Hi") == [Message("user", "Hi")]


@pytest.mark.parametrize(
    ("written", "read"), [("developer", "system"), ("function", "tool"), ("assistant", "assistant")]
)
def test_roles_of_every_provider_are_read(written, read):
    assert messages_of([{"role": written, "content": "x"}])[0].role == read


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_tool_calls_are_read_with_arguments_as_text_or_as_they_are(arguments):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    (message,) = messages_of([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert message.tool_calls == (ToolCall("f", {"a": 1}, "1"),)
    assert message.content == ""


@pytest.mark.parametrize(
    "chat",
    [
        [],
        [{"content": "x"}],
        [{"role": "nobody", "content": "x"}],
        ["x"],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "secret"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}],
    ],
)
def test_what_is_no_chat_is_a_clear_error_that_quotes_nothing(chat):
    with pytest.raises(PromptError) as caught:
        messages_of(chat)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "given"),
    [
        ("words", ["words"]),
        ([], []),
        (["a", {"type": "text", "text": "b"}], ["a", "b"]),
        ([{"type": "input_text", "text": "a"}, IMAGE], ["a", "image"]),
        ([IMAGE, "a", IMAGE], ["image", "a", "image"]),
        ([{"type": "tool_result", "content": [{"type": "text", "text": "a"}, IMAGE]}], ["a", "image"]),
        ([{"seen": [IMAGE], "content": "a"}], ["image", "a"]),
        ([{"type": "thinking", "thinking": "secret"}, {"type": "text", "text": "a"}], ["a"]),
        ([{"type": "tool_use", "name": "f", "input": {}}, "a"], ["a"]),
        ([{"row": 1}], ['{"row": 1}']),
        ([{"json": {"row": 1, "shot": IMAGE["image"], "none": None}}], ['{"row": 1, "none": null}', "image"]),
        ([{"json": {"row": {"shot": IMAGE["image"]}}}], ["image"]),
    ],
)  # fmt: skip
def test_content_becomes_words_and_images_in_order(content, given):
    assert parts(content) == given


KEYS = ["type", "text", "content", "image", "url", "source", "data", "x"]
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(content=st.one_of(st.text(max_size=6), st.lists(JSON, max_size=3)))
def test_any_plain_content_becomes_parts_or_a_typed_error(content):
    try:
        found = parts(content)
    except GuardAlignError as error:
        assert isinstance(error, ImageDecodeError)  # noqa: PT017
    else:
        assert all(isinstance(part, str) for part in found)


class TestSettings:
    @pytest.fixture
    def own(self):
        from transformers import GenerationConfig

        return GenerationConfig(do_sample=True, temperature=0.7, top_p=0.9, max_length=99, eos_token_id=5)

    def test_none_leaves_what_the_model_has(self, own):
        config = generation_config(own, GenerationSettings(), max_new_tokens=3, pad_token_id=1)
        assert (config.do_sample, config.temperature, config.top_p) == (True, 0.7, 0.9)
        assert (config.max_new_tokens, config.max_length, config.pad_token_id) == (3, None, 1)

    def test_zero_is_greedy_and_the_models_own_config_stays(self, own):
        config = generation_config(own, GenerationSettings(temperature=0), max_new_tokens=3, pad_token_id=1)
        assert not config.do_sample
        assert own.do_sample
        assert own.max_length == 99

    def test_a_temperature_samples(self, own):
        own.do_sample = False
        settings = GenerationSettings(temperature=2, top_k=3, generate_kwargs={"min_new_tokens": 2})
        config = generation_config(own, settings, max_new_tokens=3, pad_token_id=1)
        assert (config.do_sample, config.temperature, config.top_k, config.min_new_tokens) == (True, 2, 3, 2)

    @pytest.mark.parametrize(
        "wrong", [{"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}, {"stop": ("",)}, {"x": 1}]
    )
    def test_what_makes_no_sense_is_refused(self, wrong):
        with pytest.raises(ValueError, match="validation error"):
            GenerationSettings(**wrong)

    @pytest.mark.parametrize(
        "wrong", [{"gamma": -1}, {"gamma": float("inf")}, {"layers": (0.5, 0.5)}, {"heads": ()}, {"layer_indices": ()}]
    )
    def test_so_is_a_calibration(self, wrong):
        with pytest.raises(ValueError, match="validation error"):
            CalibrationConfig(**wrong)
