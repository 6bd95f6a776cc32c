"""An image goes through guard, processor and a real language model; what the model sees is what was checked."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from seeing_smollm2 import IMAGE_TOKENS, seeing

from content.reread_images import LARGE, SEE_THROUGH, TURNED, opened, original_pixels, seen
from guardalign_guardrails import Guard
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.errors import ImageDecodeError
from guardalign_guardrails.testing.colours import ColourEncoder, colour_policy, painted

SETTINGS = GenerationSettings(temperature=0, max_new_tokens=6)


@pytest.fixture(scope="module")
def parts(smollm2):
    return seeing(smollm2.model, smollm2.processor)


@pytest.fixture
def lvlm(parts):
    return CalibratedLVLM(*parts, settings=SETTINGS)


@pytest.fixture
def guarded(parts, cache_dir):
    guard = Guard(colour_policy(), ColourEncoder(), cache_dir=cache_dir)
    return CalibratedLVLM(*parts, settings=SETTINGS, guard=guard)


@pytest.fixture
def shown(parts, monkeypatch):
    """The images that reach the processor."""
    seen = []
    image_processor = parts[1].image_processor
    original = type(image_processor).__call__

    def watch(self, images, *args, **kwargs):
        seen.extend(one for own in images for one in (own if isinstance(own, list) else [own]))
        return original(self, images, *args, **kwargs)

    monkeypatch.setattr(type(image_processor), "__call__", watch)
    return seen


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def as_image(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def ask(*blocks):
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": "What is this?"}]}]


def raw(colour):
    return {"type": "image", "image": painted(colour)}


def test_an_image_is_worth_its_tokens(lvlm, shown):
    with_image = lvlm.chat(ask(raw("white")), is_reported=True)
    assert with_image.text
    assert with_image.usage.prompt_tokens >= lvlm.chat(ask()).usage.prompt_tokens + IMAGE_TOKENS
    assert len(shown) == 1
    report = with_image.calibration
    assert all(0 < report.before[layer][0] < report.after[layer][0] for layer in report.layers)


def test_calibration_changes_what_is_said_of_an_image_and_none_leaves_it(parts):
    plain = CalibratedLVLM(*parts, settings=SETTINGS, calibration=None)
    strong = plain.variant(calibration=CalibrationConfig.fixed(3))
    settings = GenerationSettings(temperature=0, max_new_tokens=4, logprobs=0)
    values = [
        [one.logprob for one in lvlm.chat(ask(raw("white")), settings=settings).logprobs]
        for lvlm in (plain, strong, plain)
    ]
    assert values[0] == values[2] != values[1]


def test_words_alone_are_answered_as_the_language_model_would(parts, smollm2):
    plain = smollm2.variant(calibration=None, prefix=SafetyPrefix(text=""))
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital of France?"}]
    seeing_one = CalibratedLVLM(*parts, calibration=None, prefix=SafetyPrefix(text=""))
    assert seeing_one.chat(chat, settings=SETTINGS).text == plain.chat(chat, settings=SETTINGS).text


@pytest.mark.parametrize(
    "block",
    [
        lambda data: {"type": "image", "image": as_image(data)},
        lambda data: {"type": "image", "base64": base64.b64encode(data).decode(), "mime_type": "image/png"},
        lambda data: {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()},
        },
        lambda data: {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(data).decode()},
        },
    ],
    ids=["PIL", "base64", "data URL", "Anthropic"],
)
def test_any_dialect_gives_the_model_the_same_image(lvlm, shown, block):
    data = png(painted("green"))
    lvlm.chat(ask(block(data)))
    assert np.array_equal(np.asarray(shown[0]), np.asarray(as_image(data)))


def test_a_transparent_image_is_seen_over_white_as_it_was_judged(lvlm, shown):
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    lvlm.chat(ask({"type": "image", "image": clear}))
    assert shown[0].mode == "RGB"
    assert np.asarray(shown[0]).min() == 255


def test_an_unsafe_image_is_masked_before_the_processor_sees_it(guarded, shown):
    answer = guarded.chat(ask(raw("red")))
    assert [verdict.action for verdict in answer.verdicts] == ["mask"]
    masked = guarded.guard.check(painted("red")).output
    assert np.array_equal(np.asarray(shown[0]), np.asarray(masked))
    assert not np.array_equal(np.asarray(shown[0]), np.asarray(painted("red")))


@pytest.mark.parametrize("data", [TURNED, SEE_THROUGH, LARGE], ids=["turned", "see-through", "large"])
@pytest.mark.parametrize("form", ["bytes", pytest.param("PIL", marks=pytest.mark.slow)])
def test_an_image_with_several_readings_is_seen_as_it_was_scored(guarded, shown, data, form):
    image = data if form == "bytes" else opened(data)
    result = guarded.guard.check(image)
    answer = guarded.chat(ask({"type": "image", "image": image}))
    assert [(verdict.action, verdict.delivery) for verdict in answer.verdicts] == [("allow", "canonical")]
    assert seen(shown[0]) == seen(result.pixels)
    assert seen(shown[0])[1] != original_pixels(data)


@pytest.mark.slow
def test_images_keep_their_chats_in_a_batch(guarded, shown):
    chats = [ask(raw("white")), ask(), ask(raw("blue")), ask(raw("green"))]
    answers = guarded.batch(chats)
    assert [answer.finish_reason == "refusal" for answer in answers] == [False, False, True, False]
    assert [len(answer.verdicts) for answer in answers] == [1, 0, 1, 1]
    assert len(shown) == 2
    assert [answer.text for answer in answers] == [guarded.chat(chat).text for chat in chats]


def test_images_of_earlier_turns_and_of_tools_go_through_too(guarded, shown):
    chat = [
        {"role": "user", "content": ["Look at this", raw("white")]},
        {"role": "assistant", "content": "A white one."},
        {"role": "user", "content": "Take another one."},
        {"role": "tool", "content": [raw("red"), "taken"], "name": "camera", "tool_call_id": "1"},
    ]
    answer = guarded.chat(chat)
    assert [(verdict.source, verdict.action) for verdict in answer.verdicts] == [("history", "allow"), ("tool", "mask")]
    assert len(shown) == 2


@pytest.mark.parametrize("data", [b"not an image", b""])
def test_what_is_no_image_is_a_clear_error(lvlm, data):
    with pytest.raises(ImageDecodeError):
        lvlm.chat(ask({"type": "image", "image": data}))
