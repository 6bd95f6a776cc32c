"""Intervals, paired comparisons and repetition, checked on properties and on published figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from guardalign_guardrails.evaluation.metrics import (
    distinct,
    mcnemar,
    paired,
    repetition,
    speed,
    wilson,
    words,
)

HITS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
TEXTS = st.text(max_size=200)


@given(st.integers(1, 500).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_is_scipys_interval(counts):
    hits, total = counts
    low, high = wilson(hits, total)
    reference = stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert low == pytest.approx(reference.low, abs=1e-6)
    assert high == pytest.approx(reference.high, abs=1e-6)
    assert 0 <= low <= hits / total <= high <= 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_fair_coin_test_on_what_changed(gained, lost):
    expected = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


@given(HITS)
def test_a_difference_lies_in_its_interval_and_turns_with_the_order(hits):
    before, after = zip(*hits, strict=True)
    forth, back = paired(before, after), paired(after, before)
    assert -1 <= forth.low <= forth.difference <= forth.high <= 1
    assert forth.difference == pytest.approx(sum(after) / len(after) - sum(before) / len(before))
    assert (back.gained, back.lost, back.p_value) == (forth.lost, forth.gained, forth.p_value)
    assert back.low == pytest.approx(-forth.high)
    assert back.high == pytest.approx(-forth.low)


# Newcombe 1998, Statistics in Medicine 17:2635, table II: (both, first only, second only, neither) and method 10.
@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((36, 14, 0, 0), 0.1528, 0.4167),
        ((0, 0, 0, 50), -0.0713, 0.0713),
        ((2, 98, 0, 0), 0.9178, 0.9945),
    ],
)
def test_the_interval_of_a_difference_is_newcombes(cells, low, high):
    both, first, second, neither = cells
    one = [True] * both + [True] * first + [False] * second + [False] * neither
    other = [True] * both + [False] * first + [True] * second + [False] * neither
    found = paired(other, one)
    assert found.low == pytest.approx(low, abs=2e-4)
    assert found.high == pytest.approx(high, abs=2e-4)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        paired([], [])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired([True], [True, False])


@given(TEXTS, st.integers(1, 5))
def test_repetition_and_distinct_are_shares(text, size):
    assert 0 <= repetition(text, size) < 1
    assert 0 < distinct(text, size) <= 1
    if distinct(text, size) == 1:
        assert repetition(text, size) == 0


@given(st.lists(st.integers(0, 10**6), min_size=5, max_size=30, unique=True), st.integers(2, 6))
def test_a_loop_repeats_all_but_its_first_round(numbers, rounds):
    text = " ".join(map(str, numbers * rounds))
    assert repetition(text) == pytest.approx(1 - 1 / rounds)


def test_words_are_counted_without_case_and_marks_are_words():
    assert words("It's FINE, isn\u2019t it?") == ["it's", "fine", ",", "isn\u2019t", "it", "?"]


def test_speed_of_nothing_is_zero():
    assert speed(0, 1.0) == 0
    assert speed(10, 0.0) == 0
    assert math.isclose(speed(10, 4.0), 2.5)
