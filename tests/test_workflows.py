"""The files that GitHub and pre-commit read: they call what exists, and a workflow may do no more than it needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs() -> dict[str, dict[str, Any]]:
    """All jobs of all workflows by "file: name"."""
    return {f"{path.name}: {name}": job for path in WORKFLOWS for name, job in read(path)["jobs"].items()}


def steps() -> list[dict[str, Any]]:
    return [step for job in jobs().values() for step in job.get("steps", [])]


def test_every_make_target_that_a_workflow_calls_exists():
    called = {target for step in steps() for target in re.findall(r"\bmake ([\w-]+)", step.get("run", ""))}
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    suites = {"test", "test-all", "test-clients", "test-docs", "test-litellm", "test-llama-clients"}
    assert suites | {"test-lowest", "coverage", "mutate", "dist"} <= called
    assert called - targets == set()


def test_every_target_without_a_file_is_declared_as_such():
    declared = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert set(declared[1].split()) == set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_and_no_more(path):
    assert read(path)["permissions"] == {"contents": "read"}
    assert "secrets" not in path.read_text(encoding="utf-8")


def test_only_the_job_that_publishes_has_more_rights_and_runs_none_of_our_code():
    more = {name: job for name, job in jobs().items() if "permissions" in job}
    assert {name: job["permissions"] for name, job in more.items()} == {"release.yml: publish": {"id-token": "write"}}
    (publish,) = more.values()
    assert publish["environment"] == "pypi"
    assert [step for step in publish["steps"] if "run" in step] == []


def test_a_release_is_tested_before_it_is_built_and_built_before_it_is_published():
    release = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert release["test"]["uses"] == "./.github/workflows/tests.yml"
    assert (release["build"]["needs"], release["publish"]["needs"]) == ("test", "build")


def test_actions_are_pinned_by_major_version_and_leave_no_credentials_behind():
    used = [step for step in steps() if "uses" in step]
    for step in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"]), step["uses"]
        if step["uses"].startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    assert used


def test_every_job_that_runs_something_ends_some_time():
    assert [name for name, job in jobs().items() if "steps" in job and "timeout-minutes" not in job] == []


def test_text_from_outside_is_never_part_of_a_shell_command():
    # GitHub puts the text of an expression into the command as it is, quotes and all.
    assert [step["run"] for step in steps() if "${{" in step.get("run", "")] == []


def test_every_python_that_is_promised_is_tested_and_the_oldest_is_the_one_required():
    tested = read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert set(promised) <= set(tested)
    assert f'requires-python = ">={tested[0]}"' in PROJECT


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_is_one_that_github_takes(path):
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["type"] in ("textarea", "input", "dropdown", "checkboxes") for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_who_reports_a_miss_is_asked_for_scores_and_not_for_the_image():
    text = (ROOT / ".github" / "ISSUE_TEMPLATE" / "detection.yml").read_text(encoding="utf-8")
    assert "Do not upload the image" in text
    assert "guardalign scan --json" in text


def test_weaknesses_are_reported_where_the_security_page_says():
    (link,) = read(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml")["contact_links"]
    assert link["url"] in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert f'Repository = "{link["url"].partition("/security")[0]}"' in PROJECT


def test_dependencies_of_python_and_of_workflows_are_kept_up_to_date():
    updates = read(ROOT / ".github" / "dependabot.yml")["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"pip", "github-actions"}


def test_what_make_test_checks_is_checked_before_a_commit_too():
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = " ".join(hook["entry"] for hook in repository["hooks"])
    for tool in ("ruff check", "ruff format", "mypy"):
        assert f"$(BIN)/{tool}" in MAKEFILE
        assert f".venv/bin/{tool}" in entries
    assert ".venv/bin/python tools/words.py" in entries
    assert (ROOT / "tools" / "words.py").is_file()
