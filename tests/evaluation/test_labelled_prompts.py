"""Prompt files are read strictly, and samples of them can be drawn again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardalign_guardrails.errors import EvaluationError
from guardalign_guardrails.evaluation.prompts import LabelledPrompt, half_of, load_prompts, sample

SECRET = "a-word-that-must-not-leak"


def prompt_file(tmp_path, *rows):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def some(count, label="safe", source="a"):
    return [LabelledPrompt(f"{label} {source} {number}", label, source) for number in range(count)]


def test_a_file_gives_its_prompts_in_order(tmp_path):
    path = prompt_file(
        tmp_path,
        {"prompt": "one", "label": "safe", "source": "here", "kind": "short"},
        "",
        {"prompt": "two", "label": "unsafe", "more": 1},
    )
    assert load_prompts(path) == [LabelledPrompt("one", "safe", "here", "short"), LabelledPrompt("two", "unsafe")]


@pytest.mark.parametrize(
    ("row", "word"),
    [
        (f"{{{SECRET}", "no JSON object"),
        (f'["{SECRET}"]', "no JSON object"),
        ({"prompt": "  ", "label": "safe"}, "blank"),
        ({"prompt": [SECRET], "label": "safe"}, "'prompt'"),
        ({"prompt": SECRET, "label": "harmful"}, "safe, unsafe"),
        ({"prompt": SECRET}, "'label'"),
        ({"prompt": SECRET, "label": "safe", "source": 3}, "'source'"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_not_quoted(tmp_path, row, word):
    path = prompt_file(tmp_path, {"prompt": "fine", "label": "safe"}, row)
    with pytest.raises(EvaluationError, match="line 2") as caught:
        load_prompts(path)
    assert word in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_prompt_that_is_there_twice_is_refused(tmp_path):
    row = {"prompt": SECRET, "label": "safe"}
    with pytest.raises(EvaluationError, match="twice") as caught:
        load_prompts(prompt_file(tmp_path, row, row))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe", None])
def test_a_file_without_prompts_is_an_error_of_ours(tmp_path, content):
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvaluationError):
        load_prompts(path)


def test_a_sample_does_not_depend_on_the_order_of_the_file():
    prompts = [*some(30), *some(30, "unsafe")]
    assert sample(prompts, limit=7) == sample(prompts[::-1], limit=7)


def test_a_small_sample_is_part_of_a_larger_one():
    prompts = [*some(20), *some(9, source="b"), *some(30, "unsafe")]
    assert set(sample(prompts, limit=5)) < set(sample(prompts, limit=15)) < set(sample(prompts))


def test_another_seed_draws_another_sample():
    prompts = some(40)
    assert sample(prompts, limit=10, seed=1) != sample(prompts, limit=10, seed=2)


def test_sources_take_turns_until_one_runs_out():
    drawn = sample([*some(20), *some(3, source="b")], limit=10)
    assert sum(prompt.source == "b" for prompt in drawn) == 3
    assert sum(prompt.source == "b" for prompt in drawn[:4]) == 2


def test_only_the_sources_asked_for_are_drawn():
    assert {p.source for p in sample([*some(5), *some(5, source="b")], sources=["b"])} == {"b"}
    with pytest.raises(EvaluationError, match="source c"):
        sample(some(5), sources=["c"])


def test_the_halves_share_no_prompt_and_leave_none_out():
    prompts = some(60)
    first, second = sample(prompts, half="first"), sample(prompts, half="second")
    assert not set(first) & set(second)
    assert set(first) | set(second) == set(prompts)
    assert len(first) > 15
    assert len(second) > 15


def test_nothing_left_is_an_error():
    alone = some(1)
    other = "second" if half_of(alone[0]) == "first" else "first"
    with pytest.raises(EvaluationError, match="left"):
        sample(alone, half=other)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_digest_stands_for_the_words_alone(text):
    assert LabelledPrompt(text, "safe").digest == LabelledPrompt(text, "unsafe", "x", "y").digest
    assert LabelledPrompt(text, "safe").digest != LabelledPrompt(text + ".", "safe").digest


def test_a_prompt_shows_no_words_when_it_is_printed():
    assert SECRET not in repr(LabelledPrompt(SECRET, "unsafe", "here"))
