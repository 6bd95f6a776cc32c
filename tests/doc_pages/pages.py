"""The Python of the documents: found, and run page by page.

A page is one program: its blocks run top to bottom in one module. What an app brings along (a model, an image) is put
into that module first; see `surroundings`. A block that cannot run here has a line above it with a reason:
``<!-- not run: REASON -->``. It must still compile, and what it imports from this project must exist.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
OWN = ("guardalign_guardrails", "langchain_guardalign", "llama_index_guardalign", "openai_guardalign")
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        page: Its page, relative to the repository.
        line: Where it begins.
        language: As the page says.
        code: What is in it.
        reason: Why it is not run; None if it is.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def compiled(self) -> Any:
        """The code, with its place on the page as its place in a file."""
        text = "\n" * (self.line - 1) + self.code
        return compile(text, self.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)

    @property
    def own_imports(self) -> Iterator[tuple[str, str]]:
        """Modules of this project and the names that are imported from them."""
        for node in ast.walk(ast.parse(self.code)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OWN:
                yield from ((node.module, alias.name) for alias in node.names)


def documents() -> list[str]:
    """Every Markdown file that users read, relative to the repository."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in files if path.name != "CHANGELOG.md")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[Block]:
    """The blocks of one language on a page."""
    text = text_of(page)
    return [
        Block(page, text.count("\n", 0, found.start("code")) + 1, language, found["code"], found["reason"])
        for found in _BLOCK.finditer(text)
        if found["language"] == language
    ]


def pages_with_python() -> list[str]:
    """Pages on which a block runs."""
    return [page for page in documents() if any(block.reason is None for block in blocks(page, "python"))]


def run(page: str, brought: Mapping[str, Any]) -> dict[str, Any]:
    """Run a page with what an app brings along; the names that it leaves behind."""
    module = ModuleType("page")
    names = vars(module)
    names.update(brought)
    before, sys.modules["page"] = sys.modules.get("page"), module
    try:
        for block in blocks(page, "python"):
            if block.reason is None:
                # Workflows and pydantic look annotations up in the module that holds a class.
                result = eval(block.compiled(), names)
                if inspect.iscoroutine(result):
                    asyncio.run(result)
    finally:
        if before is None:
            del sys.modules["page"]
        else:
            sys.modules["page"] = before
    return names
