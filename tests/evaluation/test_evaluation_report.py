"""Rows count what was classified, compare like with like, and hold no words of prompts or answers."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.evaluation.frontier import draw_frontier
from guardalign_guardrails.evaluation.grid import NO_PREFIX, Answered, Condition
from guardalign_guardrails.evaluation.metrics import wilson
from guardalign_guardrails.evaluation.prompts import LabelledPrompt
from guardalign_guardrails.evaluation.refusals import RefusalClassifier
from guardalign_guardrails.evaluation.report import best, names, tables, tabulated, write_csv, write_json

REFUSAL, ANSWER, LOOP = "I'm sorry, but I can't help with that.", "Paris is the capital of France.", "so on " * 20
PROMPTS = [
    *(LabelledPrompt(f"secret unsafe {n}", "unsafe", "h" if n < 2 else "x") for n in range(4)),
    *(LabelledPrompt(f"secret safe {n}", "safe", "x") for n in range(4)),
]
PREFIX = SafetyPrefix(text="Be careful.")
NONE, ALONE = Condition(NO_PREFIX), Condition(PREFIX)
MILD, STRONG = (Condition(PREFIX, CalibrationConfig.fixed(gamma)) for gamma in (0.5, 2.0))


class WordsOnly:
    """An encoder to which nothing is like anything, so that patterns alone decide."""

    def encode_texts(self, texts):
        return torch.zeros(len(texts), 3)


def answered(condition, texts):
    return [
        Answered(prompt.digest, condition.digest, text, "stop", 10, 0.5)
        for prompt, text in zip(PROMPTS, texts, strict=True)
    ]


@pytest.fixture(scope="module")
def rows():
    texts = {
        NONE: [ANSWER] * 8,
        ALONE: [REFUSAL, ANSWER, ANSWER, ANSWER, ANSWER, ANSWER, ANSWER, ANSWER],
        MILD: [REFUSAL, REFUSAL, REFUSAL, ANSWER, ANSWER, ANSWER, ANSWER, ANSWER],
        STRONG: [REFUSAL, REFUSAL, REFUSAL, REFUSAL, REFUSAL, REFUSAL, LOOP, ANSWER],
    }
    answers = [answer for condition, own in texts.items() for answer in answered(condition, own)]
    return tabulated(list(texts), PROMPTS, answers[::-1], RefusalClassifier(WordsOnly()))


def test_each_condition_is_a_row_with_its_counts(rows):
    strong = rows[3]
    assert strong.condition == STRONG
    assert (strong.groups["unsafe"].refusal, strong.groups["unsafe"].total) == (4, 4)
    safe = strong.groups["safe"]
    assert (safe.refusal, safe.degenerate, safe.compliance) == (2, 1, 1)
    assert safe.refused == 0.5
    assert (safe.low, safe.high) == wilson(2, 4)
    assert safe.keywords == 2


def test_outcomes_of_a_group_are_all_its_prompts(rows):
    for row in rows:
        for group in row.groups.values():
            assert group.refusal + group.deflection + group.compliance + group.degenerate == group.total


def test_sources_are_groups_of_their_own(rows):
    assert set(rows[0].groups) == {"safe", "safe/x", "unsafe", "unsafe/h", "unsafe/x"}
    assert rows[2].groups["unsafe/h"].refusal == 2
    assert rows[2].groups["unsafe/x"].refusal == 1


def test_calibration_is_compared_with_the_prefix_alone_prompt_by_prompt(rows):
    none, alone, mild, strong = rows
    assert none.against_prefix_alone == alone.against_prefix_alone == {}
    assert mild.against_prefix_alone["unsafe"].difference == 0.5
    assert (mild.against_prefix_alone["unsafe"].gained, mild.against_prefix_alone["safe"].gained) == (2, 0)
    assert strong.against_prefix_alone["safe"].gained == 2


def test_the_best_gains_most_at_a_bearable_price(rows):
    assert best(rows).condition == MILD
    assert best(rows, most_rise=0.5) is rows[2]
    assert best(rows, most_rise=0.5, most_degenerate=0.3) is rows[3]
    assert best(rows[:2]) is None


def test_speed_and_repetition_are_of_all_answers(rows):
    assert rows[0].tokens_per_second == pytest.approx(20)
    assert rows[0].repetition == 0
    assert rows[3].repetition > 0.1


def test_a_head_is_not_classified():
    condition = Condition(SafetyPrefix(text="I must refuse to help.", placement="response"))
    answers = answered(condition, [f"I must refuse to help. {ANSWER}"] * 8)
    (row,) = tabulated([condition], PROMPTS, answers, RefusalClassifier(WordsOnly()))
    assert row.groups["unsafe"].refused == 0
    assert row.groups["unsafe"].keywords == 0


def test_names_tell_prefixes_apart_only_if_there_are_several(rows):
    assert names(rows)[1] == "user, prefix alone"
    other = replace(rows[1], condition=Condition(SafetyPrefix(text="Another one.")))
    assert names([*rows, other])[0] == "no prefix"
    assert names([*rows, other])[1::3] == ["user, prefix alone, prefix 1", "user, prefix alone, prefix 2"]


def test_files_and_tables_agree_and_hold_no_words_of_prompts_or_answers(rows, tmp_path):
    write_json(rows, {"model": "small"}, tmp_path / "r.json")
    write_csv(rows, tmp_path / "r.csv")
    console = Console(record=True, width=160, file=(tmp_path / "shown").open("w"))
    for table in tables(rows):
        console.print(table)
    shown = console.export_text()
    content = (tmp_path / "r.json").read_text(encoding="utf-8")
    lines = list(csv.DictReader((tmp_path / "r.csv").open(encoding="utf-8")))
    for text in (content, (tmp_path / "r.csv").read_text(encoding="utf-8"), shown):
        assert not any(words in text for words in ("secret", "sorry", "Paris"))

    found = json.loads(content)
    assert found["model"] == "small"
    assert found["best"] == MILD.digest
    assert [one["condition"] for one in found["conditions"]] == [row.condition.digest for row in rows]
    by_key = {(line["condition"], line["group"]): line for line in lines}
    assert len(by_key) == len(lines) == len(rows) * 5
    for one in found["conditions"]:
        for group, counts in one["groups"].items():
            line = by_key[one["condition"], group]
            assert {name: float(line[name]) for name in counts} == pytest.approx(counts)
    assert by_key[MILD.digest, "unsafe"]["change"] == "0.5"
    assert by_key[MILD.digest, "unsafe/h"]["change"] == ""
    assert "3/4" in shown
    assert "+50" in shown


def test_the_image_shows_a_point_of_its_own_for_each_condition(rows):
    def coloured(image):
        return sum(count for count, colour in image.getcolors(1 << 24) if max(colour) - min(colour) > 60)

    few, more = draw_frontier(rows[:2], "few"), draw_frontier(rows, "more")
    assert few.size == more.size
    assert few.mode == "RGB"
    assert coloured(more) > coloured(few) > 0


def test_conditions_without_safe_prompts_are_left_out_of_the_image(rows):
    alone = [replace(row, groups={"unsafe": row.groups["unsafe"]}) for row in rows]
    assert draw_frontier(alone, "none").size == draw_frontier(rows, "all").size
