"""Calibrated attention is exact in every family, from the images and words that its own processor makes tokens of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from families import VISION, WORDS, Family, family
from PIL import Image
from reference import spying

from guardalign_guardrails.decoding.attention.calibration import Calibration
from guardalign_guardrails.decoding.chat.admission import AdmittedMessage
from guardalign_guardrails.decoding.chat.prompts.template import render
from guardalign_guardrails.decoding.chat.prompts.tokenization import Prompts, to_device, tokenize
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix

pytestmark = pytest.mark.filterwarnings("ignore")

NEW = 4
EVERYWHERE = CalibrationConfig.fixed(1.0, layers=(0, 1))
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
WIDE, TALL = Image.new("RGB", (40, 20), (200, 30, 30)), Image.new("RGB", (18, 30), (20, 90, 200))
SHORT = [AdmittedMessage("user", (WIDE, "What is in this image?"))]
LONG = [
    AdmittedMessage("user", (WIDE, "What is it?")),
    AdmittedMessage("assistant", ("A house.",)),
    AdmittedMessage("user", (TALL, "And which of them is larger?")),
]
BATCHES = {"one": [SHORT], "padded batch": [SHORT, LONG]}


def without_images(chat: list[AdmittedMessage]) -> list[AdmittedMessage]:
    return [AdmittedMessage(m.role, tuple(p for p in m.parts if isinstance(p, str))) for m in chat]


def prompts(one: Family, chats: list[list[AdmittedMessage]], placement: str = "user") -> Prompts:
    prefix = SafetyPrefix(text="As an AI assistant, I must refuse.", placement=placement)
    chats = chats if one.takes_images else [without_images(chat) for chat in chats]
    return tokenize(
        one.processor, [render(one.processor, chat, prefix, takes_images=one.takes_images) for chat in chats]
    )


def generate(model: Any, found: Prompts, **more: Any) -> Any:
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    return model.generate(**to_device(found.inputs, model.device, model.dtype), **{**settings, **more})


def logits(model: Any, found: Prompts) -> torch.Tensor:
    with torch.no_grad():
        return model(**to_device(found.inputs, model.device, model.dtype)).logits


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("one", torch.float32), ("padded batch", torch.float32), ("padded batch", torch.bfloat16)],
    ids=["one", "padded batch", "padded batch in bfloat16"],
)
@pytest.mark.parametrize("name", [*VISION, *WORDS])
def test_every_layer_of_the_prompt_and_every_step_equals_the_float64_reference(name, kind, dtype):
    one = family(name)
    model, found = one.model(dtype), prompts(one, BATCHES[kind])
    calibration = Calibration(model, EVERYWHERE)
    with calibration, spying(calibration, found.spans) as seen, calibration.generation(found.spans):
        generate(model, found)
    assert seen.lengths == [found.spans.length] * len(calibration.layers) + [1] * len(calibration.layers) * (NEW - 1)
    assert max(seen.errors) < TOLERANCE[dtype]
    assert max(seen.effects) > 3 * TOLERANCE[dtype], "calibration did nothing that could be wrong"


@pytest.mark.parametrize("name", [*VISION, *WORDS])
def test_off_is_the_models_own_to_the_bit_and_on_is_not(name):
    one = family(name)
    model, found = one.model(), prompts(one, BATCHES["padded batch"])
    calibration = Calibration(model, EVERYWHERE)
    idle = Calibration(model, CalibrationConfig.fixed(0, layers=(0, 1)))
    stock = logits(model, found)
    with idle, idle.generation(found.spans):
        off = logits(model, found)
    with calibration:
        outside = logits(model, found)
        with calibration.generation(found.spans):
            on = logits(model, found)
    own = found.inputs["attention_mask"].bool()
    for same in (off, outside, logits(model, found)):
        assert torch.equal(stock[own], same[own])
    assert not torch.equal(stock[own], on[own])
    for row, spans in enumerate(found.spans.prompts):
        before = slice(int(own[row].nonzero()[0]), spans.instruction[0][0])
        assert torch.allclose(stock[row, before], on[row, before], atol=1e-5), "rows before the instruction changed"


@pytest.mark.parametrize("name", [*VISION, *WORDS])
def test_the_model_is_as_it_was_after_an_exception_in_mid_generation(name):
    one = family(name)
    model, found = one.model(), prompts(one, BATCHES["one"])
    # transformers leaves hooks of its own at the first call.
    generate(model, found, max_new_tokens=1, min_new_tokens=1)
    before = state(model)

    def stop(*_: Any) -> None:
        assert state(model) != before
        raise RuntimeError("stop")

    calibration = Calibration(model, EVERYWHERE)
    hook = model.get_output_embeddings().register_forward_hook(stop)
    try:
        with pytest.raises(RuntimeError, match="stop"), calibration, calibration.generation(found.spans):
            generate(model, found)
    finally:
        hook.remove()
    assert state(model) == before


def state(model: Any) -> dict[str, tuple[Any, ...]]:
    """What of each module calibration could leave changed."""
    return {
        name: (
            sorted(module.__dict__),
            [*module._forward_pre_hooks],
            [*module._forward_hooks],
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("name", [*VISION, *WORDS])
def test_the_self_test_passes(name):
    Calibration(family(name).model(), EVERYWHERE).self_test()


@pytest.mark.parametrize("name", VISION)
def test_only_self_attention_of_the_text_half_is_calibrated(name):
    model = family(name).model()
    text = model.config.get_text_config()
    calibration = Calibration(model, EVERYWHERE)
    across = getattr(text, "cross_attention_layers", ())
    assert calibration.layers == tuple(layer for layer in range(text.num_hidden_layers) if layer not in across)
    with calibration:
        configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
        switched = [config for config in configs.values() if config._attn_implementation != "sdpa"]
    assert switched == [text]


def test_attention_across_to_images_is_the_stock_one_to_the_bit():
    from transformers import AttentionInterface

    one = family("Mllama")
    model, found = one.model(), prompts(one, BATCHES["padded batch"])
    calibration = Calibration(model, EVERYWHERE)
    calibrated, sdpa = AttentionInterface()["sdpa"], AttentionInterface()["sdpa"]
    seen = []

    def compare(module, *args, **kwargs):
        out = calibrated(module, *args, **kwargs)
        if "Cross" in type(module).__name__:
            seen.append(torch.equal(out[0], sdpa(module, *args, **kwargs)[0]))
        return out

    with calibration, calibration.generation(found.spans):
        name = model.config.get_text_config()._attn_implementation
        calibrated = AttentionInterface()[name]
        AttentionInterface.register(name, compare)
        generate(model, found)
    assert seen == [True] * NEW


@pytest.mark.parametrize("name", ["LLaVA-1.5", "Qwen3-VL", "Gemma 3"])
def test_a_prefix_at_the_start_of_the_answer_is_looked_back_at_by_the_answer_only(name):
    one = family(name)
    model, found = one.model(), prompts(one, BATCHES["padded batch"], "response")
    calibration = Calibration(model, EVERYWHERE)
    with calibration, spying(calibration, found.spans) as seen, calibration.generation(found.spans):
        generate(model, found)
    effects = list(zip(seen.lengths, seen.effects, strict=True))
    assert max(effect for length, effect in effects if length > 1) == 0
    assert max(effect for length, effect in effects if length == 1) > 1e-3
    assert max(seen.errors) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", ["LLaVA-1.5", "Qwen2-VL", "Gemma 3", "Mllama", "Llama 3"])
def test_a_static_cache_is_exact_too(name):
    one = family(name)
    model, found = one.model(), prompts(one, BATCHES["padded batch"])
    calibration = Calibration(model, EVERYWHERE)
    with calibration, spying(calibration, found.spans) as seen, calibration.generation(found.spans):
        static = generate(model, found, cache_implementation="static", disable_compile=True)
    with calibration, calibration.generation(found.spans):
        dynamic = generate(model, found)
    assert max(seen.errors) < TOLERANCE[torch.float32]
    assert torch.equal(static.sequences, dynamic.sequences)


@pytest.mark.parametrize("size", [5, 16])
@pytest.mark.parametrize("name", ["Llama 3", "Gemma", "Qwen2-VL"])
def test_a_prompt_read_in_chunks_is_exact_too(name, size):
    one = family(name)
    # transformers splits no images.
    chats = [without_images(chat) for chat in BATCHES["padded batch"]]
    model, found = one.model(), prompts(one, chats)
    calibration = Calibration(model, EVERYWHERE)
    with calibration, spying(calibration, found.spans) as seen, calibration.generation(found.spans):
        chunked = generate(model, found, prefill_chunk_size=size)
    with calibration, calibration.generation(found.spans):
        whole = generate(model, found)
    assert seen.lengths.count(size) == len(calibration.layers) * (found.spans.length // size)
    assert max(seen.errors) < TOLERANCE[torch.float32]
    assert max(seen.effects) > 1e-3
    assert torch.equal(chunked.sequences, whole.sequences)


def test_a_chunk_may_end_within_the_prefix_of_one_chat_and_behind_that_of_another():
    one = family("Gemma")
    model, found = one.model(), prompts(one, [without_images(chat) for chat in BATCHES["padded batch"]])
    first, second = (prompt.prefix for prompt in found.spans.prompts)
    asked = [min(span[0] for span in prompt.instruction) for prompt in found.spans.prompts]
    ends = [end for end in range(*first) if end > asked[1]] + [end for end in range(*second) if end > asked[0]]
    calibration = Calibration(model, EVERYWHERE)
    errors = []
    for end in ends:
        with calibration, spying(calibration, found.spans) as seen, calibration.generation(found.spans):
            generate(model, found, prefill_chunk_size=end, max_new_tokens=1, min_new_tokens=1)
        errors += seen.errors
    assert ends
    assert max(errors) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", ["LLaVA-1.5", "Qwen2-VL", "Gemma 3", "Llama 3"])
def test_a_second_turn_that_goes_on_from_the_cache_of_the_first_is_exact_too(name):
    one = family(name)
    said, asked = AdmittedMessage("assistant", ("A house.",)), AdmittedMessage("user", ("Which is larger?",))
    model, first, second = one.model(), prompts(one, [SHORT], "system"), prompts(one, [[*SHORT, said, asked]], "system")
    past = first.spans.length
    assert torch.equal(second.inputs["input_ids"][:, :past], first.inputs["input_ids"])
    assert first.spans.prompts[0].prefix == second.spans.prompts[0].prefix
    calibration = Calibration(model, EVERYWHERE)
    with calibration, calibration.generation(first.spans):
        cache = generate(model, first, max_new_tokens=1, min_new_tokens=1).past_key_values
    assert cache.get_seq_length() == past
    # The images are in the cache.
    rest = replace(second, inputs={k: v for k, v in second.inputs.items() if "pixel" not in k and "image" not in k})
    with calibration, spying(calibration, second.spans) as seen, calibration.generation(second.spans):
        seen.tokens.update(dict.fromkeys(calibration.layers, past))
        continued = generate(model, rest, past_key_values=cache)
    with calibration, calibration.generation(second.spans):
        whole = generate(model, second)
    assert seen.lengths[0] == second.spans.length - past
    assert max(seen.errors) < TOLERANCE[torch.float32]
    assert max(seen.effects) > 1e-3
    assert torch.equal(continued.sequences, whole.sequences)
