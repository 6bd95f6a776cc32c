"""Every LLM class of the matrix is installed by its group and named to users, and understands its server."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("llama_index.core")

from with_llama_clients.llama_clients import LLAMA_CLIENTS
from with_llama_clients.llama_wires import wired

ROOT = Path(__file__).parents[2]
PACKAGES = {f"llama-index-llms-{client.package.replace('_', '-')}" for client in LLAMA_CLIENTS.values()}


def test_the_dependency_group_has_a_lower_bound_for_every_class():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    group = project.partition("\nllama-clients = [")[2].partition("\n]")[0]
    assert {line.strip(' ",').partition(">=")[0] for line in group.splitlines() if ">=" in line} == PACKAGES


def test_the_page_on_hosted_models_names_every_class_and_the_command():
    page = (ROOT / "docs" / "llama-index" / "hosted-models.md").read_text(encoding="utf-8")
    assert [package for package in PACKAGES if f"`{package}`" not in page] == []
    assert "`make test-llama-clients`" in page


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("name", LLAMA_CLIENTS)
def test_a_server_speaks_as_its_class_understands_it(name, colours):
    from llama_index.core.base.llms.types import ChatMessage

    with wired(name, colours) as wire:
        assert wire.bare.chat([ChatMessage("hello")]).message.content == "one two three"
        assert "hello" in wire.server.requests[-1].raw.decode()
