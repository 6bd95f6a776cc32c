"""Calibrated attention is exact, touches what it should and nothing else, and leaves the model as it was."""

from __future__ import annotations

import threading

import pytest
import torch
from reference import spying
from tiny_models import TEXT_MODELS, llama, made

from guardalign_guardrails.decoding.attention import correction
from guardalign_guardrails.decoding.attention.calibration import Calibration
from guardalign_guardrails.decoding.attention.token_spans import BatchSpans, PromptSpans
from guardalign_guardrails.decoding.config import CalibrationConfig
from guardalign_guardrails.errors import CalibrationError

pytestmark = pytest.mark.filterwarnings("ignore")

LENGTH, NEW = 20, 6
ONE = PromptSpans((1, 5), ((8, 14),))
OTHER = PromptSpans((5, 8), ((9, 12), (14, 16)))
SINGLE, PADDED = BatchSpans((ONE,), LENGTH), BatchSpans((ONE, OTHER), LENGTH)
ALL = {"gamma": 1.0, "layers": (0, 1)}
PAPER = {"target": None, "queries": "instruction+generated"}
# Rows that are all padding are not numbers in the model's own eager attention.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def tokens(rows: int) -> dict[str, torch.Tensor]:
    """Random prompts; of two rows the second is padded on the left by four."""
    torch.manual_seed(1)
    ids, mask = torch.randint(3, 99, (rows, LENGTH)), torch.ones(rows, LENGTH, dtype=torch.long)
    if rows > 1:
        ids[1, :4], mask[1, :4] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, inputs, **settings):
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **settings}
    return model.generate(**inputs, **settings)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("spans", [SINGLE, PADDED], ids=["single", "padded batch"])
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_every_layer_of_prefill_and_every_decode_step_equals_the_float64_reference(name, spans, dtype):
    model = made(TEXT_MODELS[name], dtype)
    calibration = Calibration(model, CalibrationConfig.fixed(**ALL))
    with calibration, spying(calibration, spans) as seen, calibration.generation(spans):
        generate(model, tokens(len(spans.prompts)))
    assert set(seen.lengths) == {LENGTH, 1}
    assert len(seen.errors) == model.config.num_hidden_layers * NEW
    assert max(seen.errors) < TOLERANCE[dtype]
    assert max(seen.effects) > 3 * TOLERANCE[dtype], "calibration did nothing that could be wrong"


@pytest.mark.parametrize(
    "settings",
    [
        {"queries": "instruction"},
        {"heads": (0, 3)},
        {"form": "paper", "gamma": 0.01},
        {"layers": (0.25, 0.75)},
        {"layer_indices": (3, 0)},
        {"target": 0.5, "heads": (0, 3)},
        {"target": 0.5, "form": "paper", "gamma": 0.1},
        {"target": "shallow", "layers": (0.5, 1), "gamma": 4},
    ],
)
def test_each_setting_equals_the_reference(settings):
    model = made(llama)
    calibration = Calibration(model, CalibrationConfig(**{**PAPER, **ALL, **settings}))
    with calibration, spying(calibration, PADDED) as seen, calibration.generation(PADDED):
        generate(model, tokens(2))
    assert max(seen.errors) < TOLERANCE[torch.float32]
    assert max(seen.effects) > 1e-3


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("queries", ["instruction", "instruction+generated"])
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_target_is_as_exact_as_a_fixed_gamma(name, queries, dtype):
    model = made(TEXT_MODELS[name], dtype)
    calibration = Calibration(model, CalibrationConfig(target=0.5, layers=(0, 1), queries=queries))
    with calibration, spying(calibration, PADDED) as seen, calibration.generation(PADDED):
        generate(model, tokens(2))
    assert max(seen.errors) < TOLERANCE[dtype]
    assert max(seen.effects) > 3 * TOLERANCE[dtype], "calibration did nothing that could be wrong"


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_beams_and_several_samples_belong_to_their_prompt(settings):
    model = made(llama)
    calibration = Calibration(model, CalibrationConfig.fixed(**ALL))
    with calibration, spying(calibration, PADDED) as seen, calibration.generation(PADDED):
        generate(model, tokens(2), **settings)
    assert max(seen.errors) < TOLERANCE[torch.float32]


def test_an_instruction_in_pieces_equals_the_reference():
    model, spans = made(llama), BatchSpans((OTHER,), LENGTH)
    calibration = Calibration(model, CalibrationConfig.fixed(**ALL))
    with calibration, spying(calibration, spans) as seen, calibration.generation(spans):
        generate(model, tokens(1))
    assert max(seen.errors) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("spans", [SINGLE, PADDED], ids=["single", "padded batch"])
def test_a_static_cache_longer_than_the_chat_equals_the_reference(spans):
    model = made(llama)
    calibration = Calibration(model, CalibrationConfig.fixed(**ALL))
    with calibration, spying(calibration, spans) as seen, calibration.generation(spans):
        generate(model, tokens(len(spans.prompts)), cache_implementation="static")
    assert set(seen.lengths) == {LENGTH, 1}
    assert max(seen.errors) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("spans", [SINGLE, PADDED], ids=["single", "padded batch"])
@pytest.mark.parametrize("name", ["Llama", "Gemma 2, softcap"])
def test_without_a_kernel_that_tells_sums_few_scores_are_made_at_a_time_and_rows_stay_exact(name, spans, monkeypatch):
    model = made(TEXT_MODELS[name])
    calibration = Calibration(model, CalibrationConfig.fixed(**ALL))
    three_rows = 3 * len(spans.prompts) * 4 * (LENGTH + NEW)
    sizes, summed = [], torch.logsumexp
    monkeypatch.setattr(correction, "has_lse", lambda *_: False)
    monkeypatch.setattr(correction, "_MOST_SCORES", three_rows)
    monkeypatch.setattr(torch, "logsumexp", lambda z, dim: sizes.append(z.numel()) or summed(z, dim))
    with calibration, spying(calibration, spans) as seen, calibration.generation(spans):
        generate(model, tokens(len(spans.prompts)))
    assert max(seen.errors) < TOLERANCE[torch.float32]
    assert max(sizes) <= three_rows
    assert len(sizes) > len(seen.lengths), "nothing was split"


def test_gradients_are_those_of_the_calibrated_model():
    model = made(llama, torch.float64)
    calibration = Calibration(model, CalibrationConfig.fixed(**ALL))
    torch.manual_seed(2)
    x, toward = model.get_input_embeddings()(tokens(1)["input_ids"]).detach(), torch.randn(1, LENGTH, 32).double()

    def loss(embeddings):
        out = model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        return out[:, :, 0].sum()

    step = 1e-4 * toward * x.std()
    with calibration:
        with torch.inference_mode(), calibration.generation(SINGLE):
            model.model(inputs_embeds=x)
        with calibration.generation(SINGLE):
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(leaf), leaf)
            with torch.no_grad():
                measured = (loss(x + step) - loss(x - step)) / 2
    assert (gradient * step).sum().item() == pytest.approx(measured.item(), rel=1e-2)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_without_calibration_the_logits_are_the_models_own_to_the_bit(name):
    model, inputs = made(TEXT_MODELS[name]), tokens(2)
    idle = Calibration(model, CalibrationConfig.fixed(0, layers=(0, 1)))
    with torch.no_grad():
        stock = model(**inputs).logits
        with idle, idle.generation(PADDED):
            off = model(**inputs).logits
        active = Calibration(model, CalibrationConfig.fixed(**ALL))
        with active:
            outside = model(**inputs).logits
            with active.generation(PADDED):
                on = model(**inputs).logits
        after = model(**inputs).logits
    assert torch.equal(stock, off)
    assert torch.equal(stock, outside)
    assert torch.equal(stock, after)
    assert not torch.equal(stock, on)


def test_the_model_is_as_it_was_after_an_exception():
    model = made(llama)
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with pytest.raises(RuntimeError, match="stop"), Calibration(model, CalibrationConfig.fixed(**ALL)):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "sdpa"
    for name, module in model.named_modules():
        assert module.__dict__.keys() == before[name].keys()
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_a_prefix_behind_the_instruction_changes_nothing_at_prefill():
    model, inputs = made(llama), tokens(1)
    spans = BatchSpans((PromptSpans((15, 19), ((8, 14),)),), LENGTH)
    calibration = Calibration(model, CalibrationConfig.fixed(**ALL))
    with torch.no_grad(), calibration, calibration.generation(spans):
        calibrated = model(**inputs).logits
    with torch.no_grad():
        assert torch.allclose(calibrated, model(**inputs).logits, atol=1e-5)


@pytest.mark.parametrize("target", [0.4, 0.7])
def test_a_target_gives_the_prefix_that_share_in_every_chosen_layer(target):
    model, inputs = made(llama), tokens(2)
    calibration = Calibration(model, CalibrationConfig(gamma=50, layers=(0.25, 1), target=target))
    with torch.no_grad(), calibration, calibration.generation(PADDED, is_reported=True) as report:
        model(**inputs)
    assert set(report.after) == {1, 2, 3}
    for layer, after in report.after.items():
        for row, share in enumerate(after):
            reached = max(target, report.before[layer][row])
            is_capped = report.gamma[layer][row] > 49
            assert share == pytest.approx(reached, abs=0.01) or (is_capped and share < target)


def test_a_shallow_target_is_the_share_of_the_layers_before_and_gamma_is_a_cap():
    model, inputs = made(llama), tokens(1)
    config = CalibrationConfig(gamma=1e-3, layers=(0.5, 1), target="shallow")
    calibration = Calibration(model, config)
    with torch.no_grad(), calibration, calibration.generation(SINGLE, is_reported=True) as report:
        model(**inputs)
    assert set(report.gamma) == {2, 3}
    assert all(0 <= gamma <= 1.0001e-3 for row in report.gamma.values() for gamma in row)


def test_two_threads_on_one_model_keep_their_own_spans():
    model, inputs = made(llama), tokens(1)
    calibration = Calibration(model, CalibrationConfig.fixed(**ALL))
    others = BatchSpans((PromptSpans((2, 9), ((10, 18),)),), LENGTH)
    alone, together = {}, {}

    def run(results, name, spans):
        with torch.no_grad(), calibration.generation(spans):
            for _ in range(5):
                results[name] = model(**inputs).logits

    with calibration:
        for name, spans in (("one", SINGLE), ("other", others)):
            run(alone, name, spans)
        threads = [
            threading.Thread(target=run, args=(together, name, spans))
            for name, spans in (("one", SINGLE), ("other", others))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not torch.equal(alone["one"], alone["other"])
    for name in alone:
        assert torch.allclose(alone[name], together[name], atol=1e-5)


def test_no_mask_of_length_squared_is_made():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    long = sum(side >= 100 for side in tensor.shape)
                    self.largest = max(self.largest, long)
            return out

    model = made(llama)
    calibration = Calibration(model, CalibrationConfig.fixed(**ALL))
    spans = BatchSpans((PromptSpans((1, 5), ((8, 60),)),), 110)
    ids = torch.randint(3, 98, (1, 110))
    with torch.no_grad(), calibration, calibration.generation(spans), Watch() as watch:
        model.model.layers[0](model.model.embed_tokens(ids), position_embeddings=_rotary(model, ids))
        model.model(input_ids=ids, use_cache=False)
    assert watch.largest < 2


def _rotary(model, ids):
    return model.model.rotary_emb(model.model.embed_tokens(ids), torch.arange(ids.shape[1]).unsqueeze(0))


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_the_self_test_passes_on_every_family(name):
    Calibration(made(TEXT_MODELS[name]), CalibrationConfig.fixed(**ALL)).self_test()


def test_the_self_test_fails_closed_if_a_layer_takes_no_part():
    model = made(llama)
    calibration = Calibration(model, CalibrationConfig.fixed(**ALL))
    attention = model.model.layers[2].self_attn
    attention.forward = lambda hidden_states, **_: (torch.zeros_like(hidden_states), None)
    with pytest.raises(CalibrationError, match=r"\[2\]"):
        calibration.self_test()


def test_a_model_is_calibrated_once_at_a_time_and_installing_twice_is_once():
    model = made(llama)
    first, second = (Calibration(model, CalibrationConfig.fixed(**ALL)) for _ in range(2))
    with first, first, pytest.raises(CalibrationError, match="already"):
        second.install()
    with second:
        pass
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"layer_indices": (9,)}, "layer 9"), ({"heads": (7,)}, "Head 7"), ({"layers": (0.9, 0.91)}, "no layer")],
)
def test_what_is_not_there_cannot_be_calibrated(settings, match):
    with pytest.raises(CalibrationError, match=match):
        Calibration(made(llama), CalibrationConfig(**settings))


@pytest.mark.parametrize("name", ["s_aux", "position_bias"])
def test_scores_with_more_to_them_are_refused(name):
    model = made(llama)
    calibration = Calibration(model, CalibrationConfig.fixed(**ALL))
    with torch.no_grad(), calibration, calibration.generation(SINGLE), pytest.raises(CalibrationError, match=name):
        model(**tokens(1), **{name: torch.zeros(4)})


def generated_logits(model, inputs, config, spans):
    """Logits of all generated tokens, and the strengths that were found."""
    calibration = Calibration(model, config)
    with calibration, calibration.generation(spans, is_reported=True) as report:
        out = generate(model, inputs, output_logits=True, return_dict_in_generate=True)
    return torch.stack(out.logits), report.gamma


def test_without_an_instruction_a_targets_largest_strength_is_no_strength_to_take():
    model, inputs = made(llama), tokens(1)
    no_instruction = BatchSpans((PromptSpans((1, 5), ()),), LENGTH)
    own = torch.stack(generate(model, inputs, output_logits=True, return_dict_in_generate=True).logits)
    settings = {"gamma": 4.0, "layers": (0, 1), "queries": "instruction+generated"}
    with_target, found = generated_logits(model, inputs, CalibrationConfig(**settings, target=0.5), no_instruction)
    assert found == {}
    torch.testing.assert_close(with_target, own, rtol=0, atol=1e-4)
    fixed, _ = generated_logits(model, inputs, CalibrationConfig.fixed(**settings), no_instruction)
    assert (fixed[1:] - own[1:]).abs().max() > 0.1, "a fixed strength is for generated tokens as well"


@pytest.mark.parametrize("target", [None, 0.5])
def test_shares_of_a_prompt_with_few_instruction_tokens_are_the_same_beside_one_with_many(target):
    model, inputs = made(llama), tokens(1)
    long, short = PromptSpans((1, 5), ((8, 19),)), PromptSpans((1, 5), ((9, 11),))
    config = CalibrationConfig(gamma=2.0, layers=(0.25, 1), target=target)

    def measured(*prompts):
        calibration, spans = Calibration(model, config), BatchSpans(prompts, LENGTH)
        batch = {name: tensor.expand(len(prompts), -1) for name, tensor in inputs.items()}
        with torch.no_grad(), calibration, calibration.generation(spans, is_reported=True) as report:
            model(**batch)
        return report

    together, alone = measured(long, short), [measured(long), measured(short)]
    assert set(together.before) == {1, 2, 3}
    for figures in ("gamma", "before", "after"):
        for layer, rows in getattr(together, figures).items():
            assert rows == pytest.approx([getattr(one, figures)[layer][0] for one in alone], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("spans", ["single", "padded batch"])
@pytest.mark.parametrize("name", [name for name in TEXT_MODELS if name not in ("Llama", "Qwen2")])
def test_a_prefix_near_the_answer_is_found_where_a_sliding_cache_has_moved_it(name, spans):
    near, nearer = PromptSpans((14, 18), ((6, 12),)), PromptSpans((16, 19), ((9, 12),))
    spans = BatchSpans((near,) if spans == "single" else (near, nearer), LENGTH)
    model = made(TEXT_MODELS[name])
    calibration = Calibration(model, CalibrationConfig.fixed(**ALL))
    with calibration, spying(calibration, spans) as seen, calibration.generation(spans):
        generate(model, tokens(len(spans.prompts)))
    assert max(seen.errors) < TOLERANCE[torch.float32]
    decoded = [effect for effect, length in zip(seen.effects, seen.lengths, strict=True) if length == 1]
    assert max(decoded) > 1e-3, "no generated token saw the prefix"
