"""Every client of the matrix is installed by its group and named to users, and understands its server."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage

from with_clients.hosted_clients import CLIENTS
from with_clients.provider_servers import ToolCall
from with_clients.wires import look, wired

ROOT = Path(__file__).parents[2]
PACKAGES = {client.package.replace("_", "-") for client in CLIENTS.values()}


def test_the_dependency_group_has_a_lower_bound_for_every_client():
    group = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\nclients = [")[2].partition("\n]")[0]
    bounded = {line.strip(' ",').partition(">=")[0] for line in group.splitlines() if ">=" in line}
    assert bounded >= PACKAGES


def test_the_page_on_hosted_models_names_every_client_and_the_command():
    page = (ROOT / "docs" / "langchain" / "hosted-models.md").read_text(encoding="utf-8")
    assert [package for package in PACKAGES if f"`{package}`" not in page] == []
    assert "`make test-clients`" in page


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("method", ["invoke", "stream"])
def test_a_server_speaks_and_calls_tools_as_its_client_understands_it(name, method, colours):
    with wired(name, colours) as wire:
        model = wire.bare.bind_tools([look])
        wire.server.answers[:] = ["four five", ToolCall("look", {"where": "up"})]
        answers = []
        for _ in range(2):
            said = getattr(model, method)([HumanMessage("hello")])
            whole = None
            for chunk in [said] if method == "invoke" else said:
                whole = chunk if whole is None else whole + chunk
            answers.append(whole)
        spoken, called = answers
        assert spoken.text == "four five"
        assert [(call["name"], call["args"]) for call in called.tool_calls] == [("look", {"where": "up"})]
