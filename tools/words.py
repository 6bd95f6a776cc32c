"""A short list of words that this project does not use, looked for in Python and Markdown files.

Words that mislead or need explaining come back one by one, in reviews nobody has the time for. The glossary
(docs/glossary.md) has the words to use. A line that must quote one of these ends in ``words: allow`` (in a comment).

Run: ``python tools/words.py [FILE ...]``; without files all of the project's. Exits with 1 if one is found.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "docs", "examples", "guardalign_guardrails", "integrations", "tests", "tools")
INSTEAD = {
    "picture": "image",
    "offender": "violation",
    "offence": "finding, violation",
    "judgement": "decision, verdict",
    "ruling": "decision, verdict",
    "whoever": "callers, tracers; or name them",
    "written anew": "re-encoded, drawn again",
    "answerer": "handled_by",
    "sift": "screen",
    "film": "video",
}
EXEMPT = {"CHANGELOG.md", "docs/glossary.md", "tools/words.py", "tests/test_word_check.py"}
"""Files that name old words: the history, the glossary, and this check."""

ALLOWED = "words: allow"
_WORDS = re.compile("|".join(INSTEAD), re.IGNORECASE)


def words_in(line: str) -> list[str]:
    """Unwanted words, within names too: ``PictureGuard``, ``_pictures``, ``sifted``."""
    return [] if ALLOWED in line else [found.lower() for found in _WORDS.findall(line)]


def project_files() -> list[str]:
    """All Python and Markdown files of the project, relative to it."""
    inside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md"))
    return sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *inside])


def main(names: Iterable[str]) -> int:
    """Print each place; 1 if there is one."""
    places = 0
    for name in names:
        if name in EXEMPT:
            continue
        lines = [(0, name), *enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)]
        for number, line in lines:
            for word in words_in(line):
                print(f"{name}:{number}: '{word}'; say: {INSTEAD[word]}")
                places += 1
    return int(places > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or project_files()))
