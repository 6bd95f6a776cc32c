"""What the LlamaIndex pages show is Python, and imports what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import llama_index_guardalign

PAGES = sorted((Path(__file__).parents[2] / "docs" / "llama-index").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_code_of_a_page_is_python_and_imports_what_exists(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module, fromlist=[alias.name for alias in node.names])
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_every_public_name_is_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    said = {name for name in llama_index_guardalign.__all__ if name in text}
    assert said | {"ScreenedChat"} == set(llama_index_guardalign.__all__)
