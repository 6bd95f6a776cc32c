"""One attention call, corrected, is the attention with the raised scores, however the call is made and masked."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from reference import reference

from guardalign_guardrails.decoding.attention import correction
from guardalign_guardrails.decoding.attention.correction import (
    CalibrationReport,
    ForwardPass,
    Generation,
    Layer,
    attended,
    reweighted,
)
from guardalign_guardrails.decoding.attention.token_spans import BatchSpans, PromptSpans, positions_in_pass
from guardalign_guardrails.decoding.config import CalibrationConfig
from guardalign_guardrails.errors import CalibrationError

HEADS, GROUPS, SIZE, LENGTH = 4, 2, 8, 12
SCALING = 0.9 / math.sqrt(SIZE)
ONE = PromptSpans((1, 4), ((8, 12),))
# Its instruction lies on both sides of the prefix, which the first token of it does not see.
OTHER = PromptSpans((4, 6), ((3, 4), (8, 12)))
NEAR, NEARER = PromptSpans((5, 8), ((8, 12),)), PromptSpans((7, 9), ((3, 4), (9, 12)))
FIXED = CalibrationConfig.fixed(1.5, layers=(0, 1))


class Call:
    """The tensors of one attention call in a generation, and what it should give.

    Args:
        spans: Of each prompt.
        past: Tokens before it.
        length: Tokens in it.
        keys: Keys in the cache; None for as many as there were tokens.
        batch: Rows; None for one of each prompt.
        form: Of the mask: None, ``bool`` or ``additive``.
        window: Keys that a query sees.
        softcap: Bound on scores.
        config: Of the calibration.
    """

    def __init__(
        self, *spans, past, length, keys=None, batch=None, form="bool", window=None, softcap=None, config=FIXED
    ):
        seeded = torch.Generator().manual_seed(3)
        self.spans, self.past, self.length, self.config = BatchSpans(spans, LENGTH), past, length, config
        self.keys, self.batch = keys or past + length, batch or len(spans)
        self.window, self.softcap = window, softcap
        self.query = 2 * torch.randn(self.batch, HEADS, length, SIZE, generator=seeded)
        self.key, self.value = (
            2 * torch.randn(self.batch, GROUPS, self.keys, SIZE, generator=seeded) for _ in range(2)
        )
        # Key j of a sliding cache is that of token j + shift; those behind the last token of a static one are empty.
        shift = max(0, past + length - self.keys)
        at, column = torch.arange(past, past + length).view(-1, 1), torch.arange(self.keys) + shift
        seen = column <= at if window is None else (column <= at) & (at - column < window)
        self.seen = seen.expand(self.batch, 1, -1, -1).clone()
        if form is not None and self.batch > 1:
            # Padding on the left of the last row.
            self.seen[-1, ..., : max(0, 2 - shift)] &= at.view(1, -1, 1) < 2
        self.mask = self.seen if form == "bool" else torch.where(self.seen, 0.0, -1e4) if form == "additive" else None
        self.stock_calls = 0
        self.plain = self.expected(is_edited=False)
        self.generation = Generation(self.spans, CalibrationReport((0,)))
        self.fired = set()

    def expected(self, *, is_edited=True, gamma=None, value=None):
        """Attention in float64, shape [B, H, L, D]."""
        return reference(
            *(self.query, self.key, self.value if value is None else value, self.seen, SCALING, self.softcap),
            *(self.window, self.spans, self.past, self.config),
            is_edited=is_edited,
            gamma=gamma,
        ).transpose(1, 2)

    def weights(self, **settings):
        """Weights of all keys in float64, shape [B, H, L, K]."""
        return self.expected(value=torch.eye(self.keys).expand(self.batch, GROUPS, -1, -1), **settings)

    def forward_pass(self, **changes):
        with_generated = self.config.queries == "instruction+generated"
        placed = positions_in_pass(
            self.spans,
            past=self.past,
            length=self.length,
            batch=self.batch,
            with_generated=with_generated,
            device=torch.device("cpu"),
        )
        settings = {"owner": "own", "config": self.config, "generation": self.generation, "positions": placed}
        settings |= {"past": self.past, "length": self.length, "fired": self.fired}
        return ForwardPass(**{**settings, **changes})

    def attended(self, layer=None, **settings):
        def stock():
            self.stock_calls += 1
            return self.plain.to(self.query.dtype)

        return attended(
            *(self.forward_pass(), layer or chosen(), self.query, self.key, self.value, self.mask, SCALING, stock),
            softcap=self.softcap,
            window=self.window,
            **settings,
        )


def chosen(index=5):
    return Layer("own", index, is_chosen=True, is_measured=False)


def measured(index=2):
    return Layer("own", index, is_chosen=False, is_measured=True)


CALLS = {
    "a prompt": {"past": 0, "length": 12},
    "a prompt in a longer cache": {"past": 0, "length": 12, "keys": 15},
    "a prompt without a mask": {"past": 0, "length": 12, "form": None},
    "a prompt without a mask in a longer cache": {"past": 0, "length": 12, "keys": 15, "form": None},
    "a prompt with an additive mask": {"past": 0, "length": 12, "form": "additive"},
    "the first part of a prompt": {"past": 0, "length": 9},
    "the second part of a prompt": {"past": 7, "length": 5},
    "the second part without a mask": {"past": 7, "length": 5, "form": None},
    "the second part without a mask in a longer cache": {"past": 7, "length": 5, "keys": 15, "form": None},
    "the last token of a prompt": {"past": 11, "length": 1},
    "the last token of a prompt without a mask": {"past": 11, "length": 1, "form": None},
    "a generated token": {"past": 14, "length": 1},
    "a generated token without a mask": {"past": 14, "length": 1, "form": None},
    "a generated token with an additive mask": {"past": 14, "length": 1, "form": "additive"},
    "two generated tokens": {"past": 14, "length": 2},
    "two generated tokens without a mask": {"past": 14, "length": 2, "form": None},
}
WINDOWED = {
    "a prompt": {"past": 0, "length": 12, "window": 6},
    "a prompt without a mask": {"past": 0, "length": 12, "window": 6, "form": None},
    "the second part in a sliding cache": {"past": 7, "length": 5, "keys": 10, "window": 6},
    "the second part in a sliding cache without a mask": {
        "past": 7,
        "length": 5,
        "keys": 10,
        "window": 6,
        "form": None,
    },
    "a generated token in a sliding cache": {"past": 12, "length": 1, "keys": 6, "window": 6},
    "a generated token that sees no prefix": {"past": 30, "length": 1, "keys": 6, "window": 6},
}
PROMPTS = {"one prompt": (ONE,), "another": (OTHER,), "two prompts": (ONE, OTHER), "two of a kind": (ONE, ONE)}


def assert_close(found, expected, tolerance=2e-5):
    """What `torch.testing.assert_close` does, which loads SymPy: as long as all of these tests take."""
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max() <= tolerance


def assert_exact(call, out, **settings):
    assert_close(out, call.expected(**settings))


@pytest.fixture(params=[True, False], ids=["with a kernel that tells sums", "without"])
def kernel(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(correction, "has_lse", lambda *_: False)
    return request.param


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("settings", CALLS.values(), ids=CALLS)
def test_a_call_is_the_attention_with_raised_scores(settings, prompts, kernel):
    call = Call(*prompts, **settings)
    out = call.attended()
    assert_exact(call, out)
    assert (call.expected() - call.plain).abs().max() > 1e-2, "calibration did nothing that could be wrong"
    assert call.fired == {5}
    # Later parts of a prompt have no causal kernel that tells sums.
    is_own = not kernel or (settings["past"] and settings["length"] > 1 and settings.get("form", "") is None)
    assert call.stock_calls == is_own


@pytest.mark.parametrize("prompts", [(NEAR,), (NEAR, NEARER)], ids=["one prompt", "two"])
@pytest.mark.parametrize("settings", WINDOWED.values(), ids=WINDOWED)
def test_a_call_with_a_sliding_window_changes_what_the_window_shows(settings, prompts, monkeypatch):
    monkeypatch.setattr(correction, "has_lse", lambda *_: settings.get("form", "") is not None)
    call = Call(*prompts, **settings)
    assert_exact(call, call.attended())


@pytest.mark.parametrize("settings", [CALLS["a prompt"], CALLS["a generated token"]], ids=["prompt", "token"])
def test_several_samples_of_a_prompt_are_corrected_as_it_is(settings, kernel):
    call = Call(ONE, OTHER, batch=6, **settings)
    assert_exact(call, call.attended())


@pytest.mark.parametrize("settings", [CALLS["a prompt"], CALLS["a generated token"]], ids=["prompt", "token"])
@pytest.mark.parametrize("changes", [{"heads": (1, 2)}, {"heads": (0,)}, {"form": "paper", "gamma": 0.05}])
def test_heads_and_form_are_those_of_the_calibration(settings, changes, kernel):
    config = CalibrationConfig.fixed(**{"gamma": 1.5, "layers": (0, 1), **changes})
    call = Call(ONE, OTHER, config=config, **settings)
    assert_exact(call, call.attended())
    others = [head for head in range(HEADS) if head not in changes.get("heads", range(HEADS))]
    assert torch.equal(call.expected()[:, others], call.plain[:, others])


@pytest.mark.parametrize("settings", [CALLS["a prompt"], CALLS["a generated token"]], ids=["prompt", "token"])
def test_scores_with_a_softcap_are_raised_under_it_and_the_models_own_attention_is_taken(settings):
    call = Call(ONE, OTHER, softcap=1.5, **settings)
    assert_exact(call, call.attended())
    assert call.stock_calls == 1


@pytest.mark.parametrize("settings", [CALLS["a prompt"], CALLS["a generated token"]], ids=["prompt", "token"])
def test_with_dropout_the_models_own_attention_is_taken(settings):
    call = Call(ONE, **settings)
    assert_exact(call, call.attended(dropout=0.1))
    assert call.stock_calls == 1


def test_a_mask_may_be_longer_than_the_cache_and_the_same_for_all_rows():
    call = Call(ONE, past=0, length=12)
    call.mask = torch.nn.functional.pad(call.mask, (0, 4), value=True)
    assert_exact(call, call.attended())
    two = Call(ONE, OTHER, past=0, length=12)
    two.seen = two.mask = two.seen[:1]
    assert_exact(two, two.attended())


def counted(monkeypatch, name):
    """How often a function of the module is called."""
    calls, original = [], getattr(correction, name)
    monkeypatch.setattr(correction, name, lambda *args, **settings: calls.append(args) or original(*args, **settings))
    return calls


@pytest.mark.parametrize("form", [None, "bool", "additive"])
def test_a_generated_token_costs_one_kernel_call_and_no_correction(form, monkeypatch):
    kernels, corrections = counted(monkeypatch, "attend_with_lse"), counted(monkeypatch, "corrected")
    Call(ONE, past=14, length=1, form=form).attended()
    assert (len(kernels), len(corrections)) == (1, 0)


def test_a_prompt_costs_one_kernel_call_and_scores_of_the_prefix_alone(monkeypatch):
    kernels, made = counted(monkeypatch, "attend_with_lse"), counted(monkeypatch, "scores")
    Call(ONE, past=0, length=12).attended()
    assert [tuple(key.shape) for _, key, *_ in made] == [(1, GROUPS, 3, SIZE)]
    assert len(kernels) == 1


def test_without_a_kernel_that_tells_sums_scores_are_made_of_as_few_rows_as_fit(monkeypatch):
    monkeypatch.setattr(correction, "has_lse", lambda *_: False)
    for most, sizes in ((1, [1] * 4), (3 * HEADS * 12, [3, 1]), (4 * HEADS * 12, [4]), (2**24, [4])):
        monkeypatch.setattr(correction, "_MOST_SCORES", most)
        with monkeypatch.context() as patch:
            made = counted(patch, "scores")
            call = Call(ONE, past=0, length=12)
            assert_exact(call, call.attended())
        assert [rows.shape[2] for rows, *_ in made[1:]] == sizes


def test_sixty_four_mebibytes_of_scores_are_made_at_a_time():
    assert correction._MOST_SCORES * 4 == 64 * 2**20


@pytest.mark.parametrize("is_tracked", [True, False])
def test_the_models_own_attention_is_overwritten_only_where_no_gradient_needs_it(is_tracked):
    call = Call(ONE, past=0, length=12)
    call.query.requires_grad_(is_tracked)
    own = call.plain.float()
    own = own * call.query.sum() / call.query.sum().detach() if is_tracked else own
    kept = own.detach().clone()
    out = attended(
        call.forward_pass(), chosen(), call.query, call.key, call.value, call.mask, SCALING, lambda: own, dropout=0.1
    )
    assert_exact(call, out.detach())
    assert (out is own) == (not is_tracked)
    assert torch.equal(own.detach(), kept) == is_tracked


def share_of(call, **settings):
    """Mean share of attention of instruction tokens that see the prefix, by row."""
    weights, shares = call.weights(**settings), []
    for row in range(call.batch):
        prompt = call.spans.prompts[row * len(call.spans.prompts) // call.batch]
        asked = [at for a, b in prompt.instruction for at in range(a, b) if at >= prompt.prefix[0]]
        shares.append(float(weights[row, :, asked][..., slice(*prompt.prefix)].sum(-1).mean()))
    return shares


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_a_report_has_strength_and_share_before_and_after_for_each_row(prompts, kernel):
    call = Call(*prompts, past=0, length=12)
    call.attended()
    report = call.generation.report
    assert report.gamma == {5: [1.5] * len(prompts)}
    assert report.before[5] == pytest.approx(share_of(call, is_edited=False), abs=1e-5)
    assert report.after[5] == pytest.approx(share_of(call), abs=1e-5)


def test_generated_tokens_are_not_reported_and_a_report_nobody_wants_is_not_made():
    call = Call(ONE, past=14, length=1, softcap=50.0)
    call.attended()
    assert call.generation.report == CalibrationReport((0,))
    quiet = Call(ONE, past=0, length=12)
    quiet.generation.report = None
    assert_exact(quiet, quiet.attended())


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_a_layer_that_is_only_measured_stays_as_it_is_and_tells_its_share(prompts):
    call = Call(*prompts, past=0, length=12)
    out = call.attended(measured())
    assert_close(out, call.plain)
    (found,) = call.generation.shallow
    assert found.tolist() == pytest.approx(share_of(call, is_edited=False), abs=1e-5)
    assert (call.fired, call.generation.report.gamma) == ({2}, {})


def test_layers_take_part_in_passes_of_their_own_calibration_and_measured_ones_in_prompts_only():
    prompt, token = Call(ONE, past=0, length=12).forward_pass(), Call(ONE, past=12, length=1).forward_pass()
    last = Call(ONE, past=11, length=1).forward_pass()
    assert (prompt.is_prompt, last.is_prompt, token.is_prompt) == (True, True, False)
    assert [chosen().is_in(each) for each in (prompt, last, token)] == [True, True, True]
    assert [measured().is_in(each) for each in (prompt, last, token)] == [True, True, False]
    assert not Layer("own", 1, is_chosen=False, is_measured=False).is_in(prompt)
    assert not Layer("another", 1, is_chosen=True, is_measured=True).is_in(prompt)


@pytest.mark.parametrize("batch", [2, 4])
@pytest.mark.parametrize("target", [0.6, "shallow"])
def test_a_target_is_met_by_the_prompt_and_its_strength_is_kept_for_what_is_generated(target, batch, kernel):
    config = CalibrationConfig(gamma=30.0, layers=(0, 1), target=target, queries="instruction+generated")
    call = Call(ONE, OTHER, past=0, length=12, batch=batch, config=config)
    if target == "shallow":
        wanted = [0.5, 0.7] if batch == 2 else [0.5, 0.55, 0.65, 0.7]
        call.generation.shallow += [torch.tensor(wanted) - 0.1, torch.tensor(wanted) + 0.1]
    else:
        wanted = [target] * batch
    out = call.attended()
    gamma = call.generation.gamma[5]
    assert gamma.shape == (batch,)
    if batch == 2:
        assert_exact(call, out, gamma=gamma)
        before = share_of(call, is_edited=False)
        met = share_of(call, gamma=gamma)
        assert met == pytest.approx([max(pair) for pair in zip(before, wanted, strict=True)], abs=0.01)
        assert call.generation.report.gamma[5] == pytest.approx(gamma.tolist())
    token = Call(ONE, OTHER, past=14, length=1, batch=batch, config=config)
    token.generation.gamma[5] = torch.tensor([0.5, 2.0])
    assert_exact(token, token.attended(), gamma=torch.tensor([0.5, 2.0]))


def test_a_strength_once_found_is_not_sought_again():
    config = CalibrationConfig(gamma=30.0, layers=(0, 1), target=0.6)
    call = Call(ONE, past=0, length=12, config=config)
    call.generation.gamma[5] = torch.tensor([0.25])
    assert_exact(call, call.attended(), gamma=torch.tensor([0.25]))
    assert call.generation.gamma[5].tolist() == [0.25]


def test_a_shallow_target_needs_a_layer_before():
    call = Call(ONE, past=0, length=12, config=CalibrationConfig(gamma=3.0, layers=(0.5, 1), target="shallow"))
    with pytest.raises(CalibrationError, match="needs a layer before"):
        call.attended()


def test_generated_tokens_of_a_prompt_without_a_found_strength_stay_as_they_are():
    config = CalibrationConfig(gamma=3.0, layers=(0, 1), target=0.5, queries="instruction+generated")
    call = Call(ONE, past=14, length=1, config=config)
    assert_close(call.attended(), call.plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_the_weights_of_a_whole_matrix_are_those_of_raised_scores(prompts, dtype):
    call = Call(*prompts, past=0, length=12, form="additive")
    wide = call.key.double().repeat_interleave(HEADS // GROUPS, 1)
    logits = (call.query.double() @ wide.transpose(-1, -2) * SCALING).masked_fill(~call.seen, -1e4).to(dtype)
    weights = logits.softmax(-1)
    before, given = weights.clone(), logits.clone()
    out = reweighted(call.forward_pass(), chosen(), logits, weights, SIZE)
    assert out is weights
    assert out.dtype == dtype
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    assert_close(out, call.weights(), tolerance)
    untouched = (call.weights() == call.weights(is_edited=False)).all(-1)
    assert torch.equal(out[untouched], before[untouched])
    assert torch.equal(logits, given)
    assert call.fired == {5}
    assert call.generation.report.before[5] == pytest.approx(share_of(call, is_edited=False), abs=tolerance)


def test_the_weights_of_a_layer_that_is_only_measured_stay_as_they_are():
    call = Call(ONE, past=0, length=12)
    logits = torch.randn(1, HEADS, 12, 12).masked_fill(~call.seen, float("-inf"))
    weights = logits.softmax(-1)
    before = weights.clone()
    assert reweighted(call.forward_pass(), measured(), logits, weights, SIZE) is weights
    assert torch.equal(weights, before)
    expected = before[0, :, 8:12, 1:4].sum(-1).mean()
    assert call.generation.shallow[0].tolist() == pytest.approx([float(expected)], abs=1e-6)


@pytest.mark.parametrize("prompts", [(ONE,), (ONE, OTHER)], ids=["one prompt", "two"])
@pytest.mark.parametrize("target", [None, 0.6])
def test_where_heads_are_split_over_processes_shares_and_strengths_are_those_of_all_heads(prompts, target):
    config = CalibrationConfig(gamma=30.0 if target else 1.5, layers=(0, 1), target=target)
    whole = Call(*prompts, past=0, length=12, config=config)
    out = whole.attended()
    store = dist.HashStore()

    def half(rank):
        """What one of two processes makes of its half of the heads, and its report."""
        call = Call(*prompts, past=0, length=12, config=config)
        heads, groups = slice(2 * rank, 2 * rank + 2), slice(rank, rank + 1)
        forward_pass = call.forward_pass(group=dist.ProcessGroupGloo(store, rank, 2))
        parts = call.query[:, heads], call.key[:, groups], call.value[:, groups]
        return attended(forward_pass, chosen(), *parts, call.mask, SCALING, pytest.fail), call.generation.report

    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(half, range(2)))
    assert_close(torch.cat([part for part, _ in halves], 1), out, 1e-4)
    for _, report in halves:
        for figures in ("gamma", "before", "after"):
            own, of_all = getattr(report, figures)[5], getattr(whole.generation.report, figures)[5]
            assert own == pytest.approx(of_all, rel=1e-3)
