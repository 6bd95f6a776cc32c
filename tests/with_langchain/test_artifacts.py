"""Artifacts of tool messages: those of MCP tools are checked unless an app says otherwise, all others if it says so."""

from __future__ import annotations

import pytest
from agent_chats import Chat, tool_messages
from chat_images import b64, data_url
from langchain_core.messages import ToolMessage
from langchain_core.tools import StructuredTool
from pydantic import BaseModel

from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.testing.colours import colour_guard, painted
from langchain_guardalign import ImageGuard
from langchain_guardalign.agents.middleware import GuardAlignMiddleware
from langchain_guardalign.artifacts import is_checked, plain_of, restored
from langchain_guardalign.chat.guarded_model import GuardedChatModel
from langchain_guardalign.route import GuardedRoute
from langchain_guardalign.screening import read_input

types = pytest.importorskip("mcp.types")

RED, BLUE, WHITE = painted("red"), painted("blue"), painted()


def image(shown) -> types.ImageContent:
    return types.ImageContent(type="image", data=b64(shown), mimeType="image/png")


def blob(shown) -> types.EmbeddedResource:
    contents = types.BlobResourceContents(uri="shots://1", blob=b64(shown), mimeType="image/png")
    return types.EmbeddedResource(type="resource", resource=contents)


OF_MCP = {
    "structured content": lambda shown: {"structured_content": {"shot": data_url(shown)}},
    "structured content as MCP writes it": lambda shown: {"structuredContent": {"shot": data_url(shown)}},
    "content blocks": lambda shown: [image(shown)],
    "content blocks with a resource": lambda shown: [blob(shown)],
    "content blocks in a tuple": lambda shown: (image(shown),),
    "content blocks as JSON": lambda shown: [{"type": "image", "data": b64(shown), "mimeType": "image/png"}],
    "a resource as JSON": lambda shown: [blob(shown).model_dump(mode="json", by_alias=True)],
    "a whole result": lambda shown: types.CallToolResult(content=[image(shown)]),
}


def after(guard, artifact, **settings):
    """The artifact of a tool message that went through a guard."""
    message = ToolMessage("done", tool_call_id="t", artifact=artifact)
    return ImageGuard(guard, **settings).invoke([message])[-1].artifact


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


@pytest.mark.parametrize("name", OF_MCP)
class TestAnArtifactOfMcp:
    def test_is_checked_by_default(self, name, guard):
        artifact = OF_MCP[name](BLUE)
        new = after(guard, artifact)
        assert NOTICE in repr(new)
        assert b64(BLUE) not in repr(new)
        assert type(new) is type(artifact)
        assert b64(BLUE) in repr(artifact), "the tool's own artifact was changed"

    def test_is_masked_where_it_stands(self, name, guard):
        new = after(guard, OF_MCP[name](RED))
        assert b64(RED) not in repr(new)
        assert "iVBOR" in repr(new)
        assert repr(type(new)) == repr(type(OF_MCP[name](RED)))

    def test_is_the_very_same_object_if_it_is_harmless(self, name, guard):
        artifact = OF_MCP[name](WHITE)
        assert after(guard, artifact) is artifact

    def test_is_left_alone_if_the_app_says_so(self, name, guard):
        artifact = OF_MCP[name](BLUE)
        assert after(guard, artifact, artifacts=False) is artifact


class Own(BaseModel):
    shot: str


@pytest.mark.parametrize("artifact", [{"shot": data_url(BLUE)}, [data_url(BLUE)], [{"type": "image"}], BLUE])
def test_an_artifact_of_another_tool_is_checked_only_if_the_app_says_so(artifact, guard):
    assert after(guard, artifact) is artifact
    assert not is_checked(artifact, "mcp")
    assert is_checked(artifact, True)
    assert is_checked(artifact, "all"), "a setting that nobody knows checks too little"
    assert not is_checked(None, True)


def test_an_object_of_an_app_is_left_alone(guard):
    own = Own(shot=data_url(BLUE))
    assert after(guard, own, artifacts=True) is own


def test_a_block_of_mcp_stays_one_of_its_own(guard):
    first, second, third = after(guard, [image(BLUE), blob(RED), image(WHITE)])
    assert first == types.TextContent(type="text", text=NOTICE)
    assert (type(second), type(second.resource)) == (types.EmbeddedResource, types.BlobResourceContents)
    assert str(second.resource.uri) == "shots://1"
    assert third == image(WHITE)


def test_what_cannot_be_checked_in_an_mcp_artifact_is_withheld(guard):
    link = types.ResourceLink(type="resource_link", name="a", uri="https://images.example/a.png", mimeType="image/png")
    assert after(guard, [link]) == [types.TextContent(type="text", text=UNCHECKED_NOTICE)]


def test_a_link_whose_image_was_fetched_becomes_an_image():
    link = types.ResourceLink(type="resource_link", name="a", uri="https://images.example/a.png", mimeType="image/png")
    new = {"type": "image", "data": b64(WHITE), "mimeType": "image/png"}
    assert restored([link], plain_of([link]), [new]) == [image(WHITE)]


def test_every_way_in_checks_them_by_default():
    assert GuardAlignMiddleware().artifacts == "mcp"
    assert ImageGuard().artifacts == "mcp"
    assert GuardedChatModel.model_fields["artifacts"].default == "mcp"
    assert GuardedRoute.model_fields["artifacts"].default == "mcp"
    message = ToolMessage("done", tool_call_id="t", artifact=[image(BLUE)])
    assert [attribute for _, attribute, _ in read_input([message]).turns] == ["content", "artifact"]


def test_an_agent_never_keeps_what_an_mcp_tool_sent(guard):
    def camera():
        """Take images."""
        return "Click.", {"structured_content": {"shot": data_url(BLUE), "of": "the sky"}}

    tool = StructuredTool.from_function(camera, response_format="content_and_artifact")
    chat = Chat(GuardAlignMiddleware(guard), tool=tool)
    chat.say("Take an image.")
    assert tool_messages(chat.state)[0].artifact == {"structured_content": {"shot": NOTICE, "of": "the sky"}}
