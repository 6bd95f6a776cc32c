"""Models with attention of their own are calibrated through an adapter as exactly as those of transformers, or not."""

from __future__ import annotations

import functools
import re
import threading
from pathlib import Path

import pytest
import torch
from reference import reference
from remote_code_model import DEPTH, HEADS, SIZE, eager, fused, fused_with_grouped_keys, own_kernel, remote_code_model
from tiny_models import llama, made
from torch import nn

from guardalign_guardrails.decoding.attention import correction
from guardalign_guardrails.decoding.attention.adapter import AttentionAdapter
from guardalign_guardrails.decoding.attention.calibration import Calibration, calibrate
from guardalign_guardrails.decoding.attention.layers import cached_length
from guardalign_guardrails.decoding.attention.token_spans import BatchSpans, PromptSpans
from guardalign_guardrails.decoding.config import CalibrationConfig
from guardalign_guardrails.errors import CalibrationError

LENGTH, NEW = 20, 6
ONE = PromptSpans((1, 4), ((8, 14),))
OTHER = PromptSpans((5, 9), ((9, 12), (14, 16)))
SINGLE, PADDED = BatchSpans((ONE,), LENGTH), BatchSpans((ONE, OTHER), LENGTH)
PAGE = Path(__file__).parents[2] / "docs" / "decoding" / "remote-code.md"
ALL = CalibrationConfig.fixed(1.0, layers=(0, 1))
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
KINDS = pytest.mark.parametrize("attend", [eager, fused, fused_with_grouped_keys], ids=lambda f: f.__name__)


def tokens(rows: int = 1) -> dict[str, torch.Tensor]:
    """Random prompts; of two rows the second is padded on the left by four."""
    torch.manual_seed(1)
    ids, mask = torch.randint(3, 98, (rows, LENGTH)), torch.ones(rows, LENGTH, dtype=torch.long)
    if rows > 1:
        ids[1, :4], mask[1, :4] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def calibration_of(model, config=ALL):
    return calibrate(model, config, adapter=AttentionAdapter.find(model))


def errors_and_effects(model, spans, config):
    """What the attention modules saw, against float64: relative errors, and how far calibration should move them."""
    errors, effects = [], []
    for layer in model.model.layers:
        past = 0
        for query, key, value, mask, out in layer.attention.seen:
            args = (query, key, value, mask, SIZE**-0.5, None, None, spans, past, config)
            want, plain = reference(*args, is_edited=True), reference(*args, is_edited=False)
            rows, scale = mask[:, 0].any(-1), want.abs().max()
            errors.append(float((out.transpose(1, 2).double() - want)[rows].abs().max() / scale))
            effects.append(float((want - plain)[rows].abs().max() / scale))
            past += query.shape[2]
    return errors, effects


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("spans", [SINGLE, PADDED], ids=["single", "padded batch"])
@KINDS
def test_every_layer_of_prefill_and_every_decode_step_equals_the_float64_reference(attend, spans, dtype):
    model = remote_code_model(attend, dtype)
    with calibration_of(model) as calibration, calibration.generation(spans):
        model.generate(**tokens(len(spans.prompts)), new=NEW)
    errors, effects = errors_and_effects(model, spans, ALL)
    assert len(errors) == DEPTH * NEW
    assert max(errors) < TOLERANCE[dtype]
    assert max(effects) > 3 * TOLERANCE[dtype], "calibration did nothing that could be wrong"


@KINDS
def test_a_prompt_read_in_chunks_is_calibrated_alike(attend):
    model = remote_code_model(attend)
    with calibration_of(model) as calibration, calibration.generation(PADDED):
        whole = model.generate(**tokens(2), new=NEW)
        for layer in model.model.layers:
            layer.attention.seen.clear()
        assert torch.equal(model.generate(**tokens(2), new=NEW, chunk=7), whole)
    assert max(errors_and_effects(model, PADDED, ALL)[0]) < 1e-5


@KINDS
def test_what_a_mask_hides_stays_hidden(attend):
    model = remote_code_model(attend)
    model.model.window = 9
    with calibration_of(model) as calibration, calibration.generation(PADDED):
        model.generate(**tokens(2), new=NEW)
    errors, effects = errors_and_effects(model, PADDED, ALL)
    assert max(errors) < 1e-5 < 0.01 < max(effects)


@pytest.mark.parametrize("spans", [SINGLE, PADDED], ids=["single", "padded batch"])
@pytest.mark.parametrize("attend", [fused, fused_with_grouped_keys], ids=lambda f: f.__name__)
def test_where_no_kernel_tells_its_log_sum_exp_nothing_changes(attend, spans, monkeypatch):
    monkeypatch.setattr(correction, "has_lse", lambda *_: False)
    model = remote_code_model(attend)
    with calibration_of(model) as calibration, calibration.generation(spans):
        model.generate(**tokens(len(spans.prompts)), new=NEW)
    errors, effects = errors_and_effects(model, spans, ALL)
    assert max(errors) < 1e-5 < 0.01 < max(effects)


@pytest.mark.parametrize(
    "settings",
    [
        {"queries": "instruction"},
        {"heads": (0, 3)},
        {"form": "paper", "gamma": 0.01},
        {"layers": (0.25, 0.75)},
        {"layer_indices": (3, 0)},
    ],
)
@pytest.mark.parametrize("attend", [eager, fused], ids=lambda f: f.__name__)
def test_each_setting_equals_the_reference(attend, settings):
    config = CalibrationConfig.fixed(**{"gamma": 1.0, "layers": (0, 1), **settings})
    model = remote_code_model(attend)
    with calibration_of(model, config) as calibration, calibration.generation(PADDED):
        model.generate(**tokens(2), new=NEW)
    for index, layer in enumerate(model.model.layers):
        if index not in calibration.layers:
            layer.attention.seen.clear()
    errors, effects = errors_and_effects(model, PADDED, config)
    assert max(errors) < 1e-5
    assert max(effects) > 1e-3


@pytest.mark.parametrize("attend", [eager, fused], ids=lambda f: f.__name__)
def test_several_rows_of_a_pass_belong_to_their_prompt(attend):
    model = remote_code_model(attend)
    inputs = {name: value.repeat_interleave(3, 0) for name, value in tokens(2).items()}
    with calibration_of(model) as calibration, calibration.generation(PADDED):
        model.generate(**inputs, new=NEW)
    assert max(errors_and_effects(model, PADDED, ALL)[0]) < 1e-5


@pytest.mark.parametrize(
    "softmax",
    [
        torch.softmax,
        torch.special.softmax,
        torch.Tensor.softmax,
        lambda scores, dim, dtype: torch.softmax(scores, dim, dtype),
        lambda scores, dim, dtype: torch.softmax(input=scores, dim=3),
        lambda scores, dim, dtype: nn.Softmax(dim)(scores.to(dtype)),
    ],
)
def test_softmax_is_caught_however_it_is_called(softmax):
    model = remote_code_model(functools.partial(eager, softmax=softmax))
    with calibration_of(model) as calibration, calibration.generation(SINGLE):
        model.generate(**tokens(), new=2)
    errors, effects = errors_and_effects(model, SINGLE, ALL)
    assert max(errors) < 1e-5 < max(effects)


@KINDS
def test_without_calibration_the_logits_are_the_models_own_to_the_bit(attend):
    model, inputs = remote_code_model(attend), tokens(2)
    idle = calibration_of(model, CalibrationConfig.fixed(0, layers=(0, 1)))
    with torch.no_grad():
        stock = model(**inputs)[0]
        with idle, idle.generation(PADDED):
            off = model(**inputs)[0]
        active = calibration_of(model)
        with active:
            outside = model(**inputs)[0]
            with active.generation(PADDED):
                on = model(**inputs)[0]
        after = model(**inputs)[0]
    assert torch.equal(stock, off)
    assert torch.equal(stock, outside)
    assert torch.equal(stock, after)
    assert not torch.equal(stock, on)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_as_it_was_after_an_exception_within_attention(error):
    def stopped(*_):
        raise error("stop")

    model = remote_code_model(eager)
    before = {name: set(module.__dict__) for name, module in model.named_modules()}
    inputs = tokens()
    with torch.no_grad():
        stock = model(**inputs)[0]
        model.model.layers[1].attention.attend = stopped
        calibration = calibration_of(model)
        with pytest.raises(error, match="stop"), calibration, calibration.generation(SINGLE):
            model(**inputs)
        assert torch._C._len_torch_function_stack() == 0
        model.model.layers[1].attention.attend = eager
        with calibration:
            assert torch.equal(model(**inputs)[0], stock)
    for name, module in model.named_modules():
        assert set(module.__dict__) == before[name]
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_two_threads_on_one_model_keep_their_own_spans():
    model, inputs = remote_code_model(eager), tokens()
    calibration = calibration_of(model)
    others = BatchSpans((PromptSpans((2, 9), ((10, 18),)),), LENGTH)
    alone, together, plain = {}, {}, {}

    def run(results, name, spans):
        with torch.no_grad(), calibration.generation(spans):
            for _ in range(5):
                results[name] = model(**inputs)[0]

    def run_plain():
        with torch.no_grad():
            for _ in range(5):
                plain["together"] = model(**inputs)[0]

    with torch.no_grad():
        plain["alone"] = model(**inputs)[0]
    with calibration:
        for name, spans in (("one", SINGLE), ("other", others)):
            run(alone, name, spans)
        threads = [
            threading.Thread(target=run, args=(together, "one", SINGLE)),
            threading.Thread(target=run, args=(together, "other", others)),
            threading.Thread(target=run_plain),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not torch.equal(alone["one"], alone["other"])
    assert torch.equal(plain["alone"], plain["together"])
    for name in alone:
        assert torch.allclose(alone[name], together[name], atol=1e-5)


def test_two_models_in_one_thread_keep_their_own_spans():
    one, other = remote_code_model(eager), made(llama)
    inputs, others = tokens(), BatchSpans((PromptSpans((2, 9), ((10, 18),)),), LENGTH)
    calibrations = calibration_of(one), calibrate(other, ALL)
    with torch.no_grad(), calibrations[0], calibrations[1]:
        with calibrations[0].generation(SINGLE):
            alone = one(**inputs)[0]
        with calibrations[1].generation(others):
            other_alone = other(**inputs).logits
        with calibrations[0].generation(SINGLE), calibrations[1].generation(others):
            assert torch.equal(one(**inputs)[0], alone)
            assert torch.equal(other(**inputs).logits, other_alone)
        with calibrations[0].generation(SINGLE):
            inside = other(**inputs).logits
    with torch.no_grad():
        assert torch.equal(inside, other(**inputs).logits)


@pytest.mark.parametrize("target", [0.4, 0.7])
@KINDS
def test_a_target_gives_the_prefix_that_share_in_every_chosen_layer(attend, target):
    model = remote_code_model(attend)
    calibration = calibration_of(model, CalibrationConfig(gamma=50, layers=(0.25, 1), target=target))
    with torch.no_grad(), calibration, calibration.generation(PADDED, is_reported=True) as report:
        model(**tokens(2))
    assert set(report.after) == {1, 2, 3}
    for layer, after in report.after.items():
        for row, share in enumerate(after):
            is_capped = report.gamma[layer][row] > 49
            reached = max(target, report.before[layer][row])
            assert share == pytest.approx(reached, abs=0.01) or (is_capped and share < target)


def test_both_ways_of_attending_give_the_same_report():
    reports = []
    for attend in (eager, fused):
        model = remote_code_model(attend)
        calibration = calibration_of(model, CalibrationConfig(gamma=2, layers=(0.5, 1), target="shallow"))
        with torch.no_grad(), calibration, calibration.generation(PADDED, is_reported=True) as report:
            model(**tokens(2))
        reports.append(report)
    for name in ("gamma", "before", "after"):
        ours, others = (getattr(report, name) for report in reports)
        assert set(ours) == {2, 3}
        assert all(ours[layer] == pytest.approx(others[layer], rel=1e-3, abs=1e-5) for layer in ours)


def test_the_adapter_and_the_registry_calibrate_alike():
    model, inputs = made(llama), tokens(2)
    model.set_attn_implementation("eager")
    settings = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    logits = []
    for adapter in (None, AttentionAdapter.find(model)):
        with calibrate(model, ALL, adapter=adapter) as calibration, calibration.generation(PADDED):
            logits.append(torch.stack(model.generate(**inputs, **settings).logits))
    assert torch.allclose(*logits, atol=1e-5)
    assert not torch.allclose(logits[0], torch.stack(model.generate(**inputs, **settings).logits), atol=1e-2)


@KINDS
def test_the_self_test_passes(attend):
    calibration_of(remote_code_model(attend)).self_test()


def test_the_self_test_finds_a_kernel_that_cannot_be_caught_and_names_the_remedy():
    with pytest.raises(CalibrationError, match=r"Layer 0 .*attn_implementation='eager'"):
        calibration_of(remote_code_model(own_kernel)).self_test()


def test_the_self_test_finds_a_single_layer_that_is_never_run():
    model = remote_code_model(eager)
    layer = model.model.layers[2]
    layer.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(CalibrationError, match=r"\[2\]"):
        calibration_of(model).self_test()


def test_the_self_test_finds_a_cache_that_is_misread():
    model = remote_code_model(eager)
    text = AttentionAdapter.find(model)
    wrong = AttentionAdapter.named(model, "model", past_length=lambda args, kwargs: 0)
    calibrate(model, ALL, adapter=text).self_test()
    with pytest.raises(CalibrationError, match="past_length"):
        calibrate(model, ALL, adapter=wrong).self_test()


def test_a_step_whose_cache_goes_unseen_is_an_error():
    model = remote_code_model(eager)
    adapter = AttentionAdapter.named(model, "model", past_length=lambda args, kwargs: 0)
    calibration = calibrate(model, ALL, adapter=adapter)
    with pytest.raises(CalibrationError, match="without a cache"), calibration, calibration.generation(SINGLE):
        model.generate(**tokens(), new=2)


def test_a_kernel_that_turns_up_after_the_self_test_is_no_silent_end_of_calibration():
    model = remote_code_model(eager)
    calibration = calibration_of(model)
    calibration.self_test()
    model.model.layers[1].attention.attend = own_kernel
    with pytest.raises(CalibrationError, match="Layer 1"), calibration, calibration.generation(SINGLE):
        model.generate(**tokens(), new=2)


def test_attention_that_is_not_causal_is_refused():
    def encoder(query, key, value, _):
        return nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    with pytest.raises(CalibrationError, match="not causally"):
        calibration_of(remote_code_model(encoder)).self_test()


def test_the_text_model_is_found_and_not_the_vision_tower():
    model = remote_code_model(eager)
    adapter = AttentionAdapter.find(model)
    assert adapter.text_model is model.model
    assert [*adapter.attention] == [*range(DEPTH)] == [*range(adapter.depth)]
    assert all(adapter.attention[i] is layer.attention for i, layer in enumerate(model.model.layers))
    assert (adapter.heads, adapter.head_size) == (HEADS, SIZE)


def test_of_two_text_models_none_is_guessed_but_one_can_be_named():
    both = nn.ModuleDict({"first": remote_code_model(eager), "second": remote_code_model(eager)})
    with pytest.raises(CalibrationError, match=r"first\.model\.layers, second\.model\.layers.*named"):
        AttentionAdapter.find(both)
    assert AttentionAdapter.named(both, "second.model").text_model is both["second"].model


def test_heads_that_cannot_be_told_have_to_be_given():
    model = remote_code_model(eager)
    for layer in model.model.layers:
        del layer.attention.num_heads, layer.attention.head_dim
    with pytest.raises(CalibrationError, match="give heads and head_size"):
        AttentionAdapter.find(model)
    calibrate(model, ALL, adapter=AttentionAdapter.named(model, "model", heads=HEADS, head_size=SIZE)).self_test()
    with pytest.raises(CalibrationError, match="heads"):
        calibrate(model, ALL, adapter=AttentionAdapter.named(model, "model", heads=2, head_size=SIZE)).self_test()


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("elsewhere",), "no part 'elsewhere'"),
        (("model", "norm"), "no list of layers"),
        (("model", "layers", "self_attn"), "No layer .* 'self_attn'"),
    ],
)
def test_a_name_that_leads_nowhere_is_an_error(names, match):
    with pytest.raises(CalibrationError, match=match):
        AttentionAdapter.named(remote_code_model(eager), *names)


def test_an_adapter_belongs_to_its_model_and_its_parts_to_each_other():
    model, other = remote_code_model(eager), remote_code_model(eager)
    adapter = AttentionAdapter.find(other)
    with pytest.raises(CalibrationError, match="another model"):
        calibrate(model, adapter=adapter)
    with pytest.raises(CalibrationError, match="parts of its text model"):
        AttentionAdapter(model.model, adapter.attention, DEPTH, HEADS, SIZE)
    with pytest.raises(CalibrationError, match="layers 0 to 1"):
        AttentionAdapter(other.model, adapter.attention, 2, HEADS, SIZE)


def test_a_model_is_calibrated_once_at_a_time():
    model = remote_code_model(eager)
    first, second = calibration_of(model), calibration_of(model)
    with first, first, pytest.raises(CalibrationError, match="already"):
        second.install()
    with second:
        pass


def test_calibrate_takes_the_registry_where_it_can_and_asks_for_an_adapter_where_not():
    assert isinstance(calibrate(made(llama)), Calibration)
    with pytest.raises(CalibrationError, match=r"AttentionAdapter\.find\(model\).*docs/decoding/remote-code\.md"):
        calibrate(remote_code_model(eager))
    assert PAGE.exists()


def test_the_length_of_every_kind_of_cache_is_read():
    from transformers import DynamicCache

    states = torch.zeros(1, 2, 7, SIZE)
    cache = DynamicCache()
    cache.update(states, states, 0)
    assert cached_length((), {"past_key_values": ((states, states),)}) == 7
    assert cached_length((), {"past_key_values": cache}) == cached_length((cache,), {}) == 7
    for nothing in ({}, {"past_key_values": None}, {"past_key_values": ()}, {"past_key_values": (None, None)}):
        assert cached_length((), nothing) == 0


def test_the_example_on_the_page_works_on_the_stand_in():
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    imports, use = (code[code.index(start) :] for start in ("from guardalign", "calibration = "))
    model = remote_code_model(eager)
    model.generate = lambda inputs_embeds, max_new_tokens: model(inputs_embeds=inputs_embeds)[0]
    names = {"model": model, "embeds": model.model.tok_embeddings(torch.arange(80).unsqueeze(0))}
    with torch.no_grad():
        exec(imports[: imports.index("\n\n")] + "\n" + use, names)
        assert not torch.equal(names["tokens"], model(inputs_embeds=names["embeds"])[0])
