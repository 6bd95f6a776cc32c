"""What the documents show must work, and the defaults they name must be the defaults."""

from __future__ import annotations

import json
import re
import shlex
from importlib import import_module

import pytest
import typer
import yaml
from PIL import Image

from doc_pages.pages import ROOT, Block, blocks, documents, pages_with_python, run, text_of
from doc_pages.surroundings import App, surroundings_of
from guardalign_guardrails.actions import LADDER, SOURCES
from guardalign_guardrails.cli import app
from guardalign_guardrails.cli.policy import file_schema
from guardalign_guardrails.cli.verdict import verdict_schema
from guardalign_guardrails.policy import FailureRules, Masking, Policy
from with_langchain.openai_server import serving

README = text_of("README.md")
POLICY_PAGE = text_of("docs/policy.md")
POLICY_BLOCKS = [block.code for block in blocks("docs/policy.md", "yaml")]
COMMANDS = sorted(
    line
    for page in documents()
    for language in ("console", "bash")
    for block in blocks(page, language)
    for line in block.code.replace("\\\n", " ").splitlines()
    if re.match(r"guardalign \w+ [^|]*$", line) and "..." not in line
)
PYTHON = [block for page in documents() for block in blocks(page, "python")]


@pytest.fixture
def openai_server():
    with serving() as server:
        yield server


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("page", pages_with_python())
def test_the_python_of_a_page_runs(page, request, monkeypatch, tmp_path, cache_dir, openai_server):
    around = surroundings_of(page)(App(request, monkeypatch, tmp_path, cache_dir, openai_server))
    names = run(page, next(around))
    with pytest.raises(StopIteration):
        around.send(names)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles_and_imports_what_exists(block: Block):
    block.compiled()
    for module, name in block.own_imports:
        assert hasattr(import_module(module), name), f"{block}: {module} has no {name}"


def test_what_is_not_run_says_why():
    """Nothing is left out silently: this is the whole list."""
    assert {block.page: block.reason for block in PYTHON if block.reason is not None} == {
        "docs/decoding/large-models.md": "needs one process per card; tests/decoding/test_tensor_parallel.py runs two",
        "docs/litellm.md": "LiteLLM has an environment of its own; tests/with_litellm/test_litellm_library.py runs it",
        "docs/langchain/agents.md": "needs packages that the tests have in an environment of their own; "
        "tests/with_clients runs it",
        "docs/processes.md": "Celery is not installed with the tests",
        "docs/langchain/rag.md": "needs langchain-classic; examples/rag_with_images.py uses it",
    }


def test_every_code_block_says_its_language():
    for page in documents():
        fences = re.findall(r"^\s*```(\w*)$", text_of(page), re.MULTILINE)
        assert fences[1::2] == [""] * (len(fences) // 2), page
        assert set(fences[::2]) <= {"python", "console", "bash", "yaml", "json", "text"}, page


def test_the_custom_category_of_the_page_is_a_policy_of_five_lines():
    example = POLICY_BLOCKS[0]
    assert len(example.strip().splitlines()) == 5
    assert "alcohol" in Policy.from_yaml(example).categories


@pytest.mark.parametrize(("key", "model"), [("failure", FailureRules), ("masking", Masking)])
def test_the_defaults_on_the_policy_page_are_the_defaults(key, model):
    shown = next(data[key] for block in POLICY_BLOCKS if key in (data := yaml.safe_load(block)))
    defaults = model().model_dump(mode="json")
    assert set(shown) == set(defaults)
    for name, value in shown.items():
        assert defaults[name] == value, name


def test_every_action_and_source_is_explained():
    for action in LADDER:
        assert f"| `{action}` |" in POLICY_PAGE
    assert "|".join(SOURCES) in POLICY_PAGE


def test_links_between_documents_lead_somewhere():
    for page in documents():
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", text_of(page)):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_commands_the_readme_promises_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize(("name", "schema"), [("policy", file_schema()), ("verdict", verdict_schema())])
def test_the_published_schemas_are_current(name, schema):
    assert json.loads(text_of(f"docs/schemas/{name}.json")) == schema, "run: make pages"


def test_the_rooms_of_the_contributing_page_exist():
    roots = (ROOT, ROOT / "guardalign_guardrails", ROOT / "integrations")
    rooms = re.findall(r"`([\w./-]+(?:/|\.py|\.md))`", text_of("CONTRIBUTING.md"))
    table = re.search(r"\| task \| room .*?\n\n", text_of("CONTRIBUTING.md"), re.DOTALL)[0]
    known = {path.name for path in (ROOT / "guardalign_guardrails").rglob("*.py")} | {"default.yaml"}
    missing = [room for room in rooms if not any((root / room).exists() for root in roots) and room not in known]
    assert missing == []
    assert len(table.strip().splitlines()) >= 2 + 10
    drawn = re.search(r"```text\n(.*?)```", text_of("CONTRIBUTING.md"), re.DOTALL)[1]
    for package, root in (("guardalign_guardrails", roots[1]), ("integrations", roots[2])):
        inside = {path.name for path in root.iterdir() if path.is_dir() and path.name != "__pycache__"}
        assert {room for room in inside if f"{room}/" not in drawn} == set(), package


@pytest.mark.parametrize("line", COMMANDS, ids=str)
def test_commands_on_the_pages_can_be_given(line):
    command, words = typer.main.get_command(app), shlex.split(line, comments=True)[1:]
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, line
        command = command.commands[name]
    flags = {flag for param in command.params for flag in param.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= flags


def test_every_page_can_be_reached_from_the_readme():
    seen, left = set(), ["README.md"]
    while left:
        page = left.pop()
        if page in seen:
            continue
        seen.add(page)
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", text_of(page)):
            path = ((ROOT / page).parent / target).resolve()
            found = sorted(path.glob("*.md")) if path.is_dir() else [path] if path.suffix == ".md" else []
            left += [one.relative_to(ROOT).as_posix() for one in found]
    assert set(documents()) <= seen


def test_the_readme_is_short_and_has_a_strip_of_three_images():
    assert len(README.split()) < 800
    assert "![" in README
    strip = Image.open(ROOT / "docs" / "images" / "strip.jpg")
    assert strip.width > 3 * strip.height
    assert (ROOT / "docs" / "images" / "strip.jpg").stat().st_size < 300_000


def test_the_prefix_settings_on_the_policy_page_are_the_defaults():
    shown = next(data for block in POLICY_BLOCKS if "prefix_when" in (data := yaml.safe_load(block)))
    assert shown == {name: Policy.model_fields[name].default for name in shown}
    assert set(shown) == {"prefix", "prefix_when", "refusal", "refusal_unchecked"}
