"""What the documents show must work, and the defaults they name must be the defaults."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from guardalign_guardrails.actions import LADDER, SOURCES
from guardalign_guardrails.policy import FailureRules, Masking, Policy

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
POLICY_PAGE = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_custom_category_of_the_page_is_a_policy_of_five_lines():
    example = blocks(POLICY_PAGE, "yaml")[0]
    assert len(example.strip().splitlines()) == 5
    assert "alcohol" in Policy.from_yaml(example).categories


@pytest.mark.parametrize(("key", "model"), [("failure", FailureRules), ("masking", Masking)])
def test_the_defaults_on_the_policy_page_are_the_defaults(key, model):
    shown = next(data[key] for block in blocks(POLICY_PAGE, "yaml") if key in (data := yaml.safe_load(block)))
    defaults = model().model_dump(mode="json")
    assert set(shown) == set(defaults)
    for name, value in shown.items():
        # A limit is shown as an example, since there is none by default.
        assert defaults[name] == value or (name == "timeout_s" and defaults[name] is None)


def test_every_action_and_source_is_explained():
    for action in LADDER:
        assert f"| `{action}` |" in POLICY_PAGE
    assert "|".join(SOURCES) in POLICY_PAGE


def test_python_in_the_readme_is_python_and_imports_what_exists():
    for block in blocks(README, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module, fromlist=[alias.name for alias in node.names])
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_links_between_documents_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_commands_the_readme_promises_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_prefix_settings_on_the_policy_page_are_the_defaults():
    shown = next(data for block in blocks(POLICY_PAGE, "yaml") if "prefix_when" in (data := yaml.safe_load(block)))
    assert shown == {name: Policy.model_fields[name].default for name in shown}
    assert set(shown) == {"prefix", "prefix_when", "refusal"}
