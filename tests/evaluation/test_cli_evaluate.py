"""``guardalign evaluate refusal``: what it takes, prints and leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from typer.testing import CliRunner

from decoding.scripted_model import ScriptedModel
from guardalign_guardrails.cli import app, local_model
from guardalign_guardrails.decoding import config, loading
from guardalign_guardrails.decoding.config import CalibrationConfig
from guardalign_guardrails.detection.encoders import offline

RUNNER = CliRunner()
FEW = ("--gammas", "0.5", "--targets", "", "--queries", "instruction+generated")
GROUP_KEYS = {"total", "refusal", "deflection", "compliance", "degenerate", "refused", "low", "high", "keywords"}
ROW_KEYS = {
    "condition",
    "name",
    "prefix",
    "calibration",
    "groups",
    "against_prefix_alone",
    "distinct_2",
    "repetition",
    "tokens_per_second",
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, offline_guard):
    monkeypatch.setattr(offline, "OfflineEncoder", lambda: offline_guard.detector.encoder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(monkeypatch, smollm2):
    """A model that refuses, whatever name is asked for."""
    made = ScriptedModel.writing(smollm2.processor, "I'm sorry, but I can't help with that.")
    monkeypatch.setattr(loading, "load", lambda name, **_: loading.Loaded(made, smollm2.processor, name))
    return made


@pytest.fixture
def prompts():
    rows = [
        {"prompt": f"secret {label} {n}", "label": label, "source": "ab"[n % 2]}
        for label in ("safe", "unsafe")
        for n in range(3)
    ]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return "prompts.jsonl"


def run(*args):
    return RUNNER.invoke(app, ["evaluate", "refusal", *map(str, args)])


def test_a_table_on_standard_output_and_files_in_the_folder(prompts, model):
    result = run(prompts, *FEW, "--gammas", "0,0.5", "--max-new-tokens", 12)
    assert result.exit_code == 0, result.output
    assert "user, gamma 0.5" in result.stdout
    assert "3/3" in result.stdout
    assert "no calibration gains" in result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert {path.name for path in Path("out/refusal").iterdir()} == {
        "answers.jsonl",
        "frontier.png",
        "report.csv",
        "report.json",
    }
    assert Image.open("out/refusal/frontier.png").format == "PNG"
    report = json.loads(Path("out/refusal/report.json").read_text(encoding="utf-8"))
    assert (report["model"], report["prompts"], len(report["conditions"])) == ("smollm2", 6, 3)


def test_json_is_one_object_a_condition_and_nothing_else(prompts, model):
    result = run(prompts, *FEW, "--targets", "0.2,shallow", "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 5
    assert all(set(row) == ROW_KEYS for row in rows)
    assert all(set(group) == GROUP_KEYS for row in rows for group in row["groups"].values())
    assert [row["calibration"] and row["calibration"]["target"] for row in rows] == [None, None, None, 0.2, "shallow"]
    assert "secret" not in result.output


def test_what_is_measured_if_not_told_otherwise_includes_what_the_package_does_by_default(prompts, model):
    rows = [json.loads(line) for line in run(prompts, "--json").stdout.splitlines()]
    assert CalibrationConfig().model_dump(mode="json") in [row["calibration"] for row in rows]


def test_a_second_run_asks_nothing_again(prompts, model):
    first = run(prompts, *FEW, "--out", "here", "--json")
    asked = len(model.prompts)
    second = run(prompts, *FEW, "--out", "here", "--json")
    assert len(model.prompts) == asked > 0
    assert first.stdout == second.stdout


def test_a_limit_is_for_each_label_and_sources_can_be_chosen(prompts, model):
    rows = [json.loads(line) for line in run(prompts, "--limit", 1, *FEW, "--gammas", "", "--json").stdout.splitlines()]
    assert [row["groups"]["safe"]["total"] for row in rows] == [1, 1]
    result = run(prompts, "--sources", "b", *FEW, "--out", "other", "--json")
    assert set(json.loads(result.stdout.splitlines()[0])["groups"]) == {"safe", "safe/b", "unsafe", "unsafe/b"}


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--gammas", "much"], "--gammas"),
        (["--gammas", "-1"], "--gammas"),
        (["--gammas", "inf"], "--gammas"),
        (["--targets", "1.5"], "shallow"),
        (["--placements", "middle"], "system, user, response"),
        (["--queries", "all"], "instruction+generated"),
        (["--layers", "0.7-0.3"], "--layers"),
        (["--layers", "1/0-1"], "--layers"),
        (["--half", "third"], "first, second"),
        (["--sources", "c"], "source c"),
        (["--limit", "0"], "--limit"),
        (["--device", "toaster"], "--device toaster"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(prompts, model, args, word):
    result = run(prompts, *args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert word in result.stderr
    assert model.steps == 0


def test_a_missing_file_or_model_is_one_line(prompts):
    for args in (["missing.jsonl"], [prompts, "--model", "missing.gguf"]):
        result = run(*args)
        assert result.exit_code == 2
        assert "missing" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_one_line(prompts, model):
    Path("taken").write_text("")
    result = run(prompts, "--out", "taken/x")
    assert result.exit_code == 2
    assert "choose another place" in result.stderr


def test_the_words_of_the_flags_are_those_of_the_configuration():
    assert get_args(local_model.Placement) == get_args(config.Placement)
    assert get_args(local_model.Queries) == get_args(CalibrationConfig.model_fields["queries"].annotation)


@pytest.mark.parametrize("text", ["1/3-2/3", " 0.25 - 0.5 ", "0-1"])
def test_bands_are_fractions(text):
    low, high = local_model.band(text)
    assert 0 <= low < high <= 1
    assert local_model.band("1/3-2/3") == CalibrationConfig().layers
