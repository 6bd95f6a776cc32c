"""Every install that the documents name can be made, on every Python that the package is for.

pip is asked to resolve for another interpreter than the one it runs on, from wheels alone. It then judges markers such
as ``python_version < "3.11"`` by its own interpreter, so this shows that fitting wheels exist, and not more.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "examples").rglob("*.md"),
    *ROOT.glob("examples/*.py"),
]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# Not to be had as wheels: num2words, which SmolVLM's processor needs, wants docopt, which is plain Python.
SOURCES = ("docopt",)
# The first example of the LlamaIndex pages uses OpenAI, and its package wants another openai than ours would choose.
BESIDE = ("llama-index-llms-openai",)


def documented() -> list[list[str]]:
    """What is given to pip in each install of the documents; this package as ``.``, with its extras."""
    lines = [
        line for page in PAGES for line in re.findall(r"pip install ([^`#\n)]+)", page.read_text(encoding="utf-8"))
    ]
    return [[re.sub(r"^guardalign-guardrails\b", ".", each) for each in shlex.split(line)] for line in lines]


def extras(install: list[str]) -> set[str]:
    return {name for each in install for name in re.findall(r"[\w-]+", each.partition("[")[2])}


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *arguments, "-q", "--disable-pip-version-check"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)


def targeting(python: str) -> list[str]:
    """Options of pip for this Python on Linux with glibc 2.28."""
    platforms = ["any", "manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]
    platforms += [f"manylinux_2_{minor}_x86_64" for minor in range(5, 29)]
    options = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    return [*options, *(f"--platform={platform}" for platform in platforms)]


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """A folder with wheels of what there is only as source."""
    folder = tmp_path_factory.mktemp("wheels")
    if pip("download", "--no-deps", "--dest", str(folder), "platformdirs").returncode:
        pytest.skip("no package index can be reached")
    made = pip("wheel", "--no-deps", "--wheel-dir", str(folder), *SOURCES)
    assert made.returncode == 0, made.stderr
    return folder


def test_the_documents_name_the_extras_that_exist():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    existing = set(re.findall(r"^([\w-]+) = ", section, re.MULTILINE))
    named = set().union(*map(extras, documented()))
    assert {"offline", "langchain", "llama-index", "openai", "litellm", "local", "fetch"} <= named
    assert named <= existing


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("has_proxy", [False, True], ids=["all", "litellm"])
def test_documented_installs_resolve(built, tmp_path, python, has_proxy):
    # Together: what can be installed together can be installed one by one. The proxy needs an environment of its own.
    installs = [install for install in documented() if ("litellm" in extras(install)) == has_proxy]
    named = set().union(*map(extras, installs))
    others = {each for install in installs for each in install if not each.startswith(".")}
    if not has_proxy:
        named.add("all")
        others.update(BESIDE)
    # fast-deps reads the metadata of a wheel without loading all of it; PyTorch alone has gigabytes.
    settings = ["--use-feature=fast-deps", "--dry-run", "--ignore-installed", "--find-links", str(built)]
    target = ["--target", str(tmp_path / "target"), *targeting(python)]
    done = pip("install", *settings, *target, f".[{','.join(sorted(named))}]", *sorted(others))
    assert done.returncode == 0, done.stderr[-3000:]
