"""The API page names what is public, no more and no less, and the page on violations the components' real defaults."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from doc_pages.pages import OWN, blocks, documents, text_of
from guardalign_guardrails import SettingsError
from guardalign_guardrails.content.chat import OnViolation
from litellm_guardalign.settings import GuardrailSettings

PACKAGES = (*OWN, "litellm_guardalign")
# LiteLLM itself is not installed here; the settings below ``guardalign:`` do not need it.
STAND_INS = {"litellm_guardalign.ImageGuardrail": GuardrailSettings}


def api() -> dict[str, list[str]]:
    """Names by module, as the page has them."""
    sections = re.split(r"^## `([\w.]+)`$", text_of("docs/api.md"), flags=re.MULTILINE)[1:]
    return {
        module: [
            name for cell in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
        ]
        for module, text in zip(sections[::2], sections[1::2], strict=True)
    }


API = api()


@pytest.mark.parametrize("module", API)
def test_the_page_names_what_a_module_exports(module):
    public = getattr(import_module(module), "__all__", None)
    names = API[module]
    assert len(names) == len(set(names))
    if public is not None:
        assert set(names) == set(public) - {"__version__"}
    elif module != "litellm_guardalign":
        assert [name for name in names if getattr(import_module(module), name).__module__ != module] == []


def test_every_package_is_on_the_page():
    assert set(PACKAGES) <= set(API)


def test_a_name_is_exported_from_one_place():
    places: dict[int, list[str]] = {}
    for module, names in API.items():
        for name in names:
            if module != "litellm_guardalign":
                places.setdefault(id(getattr(import_module(module), name)), []).append(f"{module}.{name}")
    assert [where for where in places.values() if len(where) > 1] == []


def test_the_documents_import_public_names_only():
    used = {found for page in documents() for block in blocks(page, "python") for found in block.own_imports}
    assert {(module, name) for module, name in used if name not in API.get(module, [])} == set()


def table() -> dict[str, tuple[str, set[str]]]:
    """Default and accepted words by component, as the page has them."""
    rows = re.findall(
        r"^\| `([\w.]+)` \| [^|]+ \| `(\w+)` \| ([^|]+) \|$", text_of("docs/on-violation.md"), re.MULTILINE
    )
    return {name: (default, set(re.findall(r"`(\w+)`", accepted))) for name, default, accepted in rows}


def components() -> Iterator[tuple[str, Any]]:
    """Everything public that takes ``on_violation``."""
    for module, names in API.items():
        for name in names:
            whole = f"{module}.{name}"
            component = STAND_INS.get(whole) or getattr(import_module(module), name)
            if callable(component) and "on_violation" in parameters(component):
                yield whole, component


def parameters(component: Any) -> dict[str, tuple[Any, Any]]:
    """Default and type of each parameter or field."""
    if (fields := getattr(component, "model_fields", None)) is not None:
        return {name: (field.default, field.annotation) for name, field in fields.items()}
    call = component.__init__ if isinstance(component, type) else component
    try:
        signature = inspect.signature(call)
    except ValueError:
        return {}
    if "on_violation" not in signature.parameters:
        return {}
    hints = typing.get_type_hints(call)
    return {name: (each.default, hints.get(name)) for name, each in signature.parameters.items()}


def is_refused(component: Any, word: str) -> bool:
    """Whether a component refuses a word that its type has, before it asks for anything else."""
    try:
        component(on_violation=word)
    except SettingsError:
        return True
    except (TypeError, ValueError):
        return False  # it asks for a model first
    return False


def test_the_table_of_components_is_what_they_do():
    real = {}
    for name, component in components():
        default, words = parameters(component)["on_violation"]
        real[name] = (default, {word for word in typing.get_args(words) if not is_refused(component, word)})
    assert table() == real


def test_words_and_defaults_follow_the_rule():
    words = set(typing.get_args(OnViolation))
    for name, (default, accepted) in table().items():
        assert accepted <= words, name
        # A component that can answer does; one that cannot puts a notice; only where neither exists it raises.
        assert default == ("refuse" if "refuse" in accepted else "notice" if "query" not in name else "raise"), name
