"""What tools return is checked before an agent, its memory or its events are given it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from llama_images import KINDS, ask, data_url, image_of, png
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import DocumentBlock, ImageBlock, TextBlock
from llama_index.core.base.response.schema import Response
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool, QueryEngineTool, ToolMetadata
from llama_index.core.tools.calling import acall_tool, call_tool
from llama_index.core.tools.types import BaseTool, ToolOutput
from llama_index.core.workflow import Context
from llama_models import RecordingLLM
from llama_nodes import b64, images_in
from llama_seen import Tracer
from pydantic import BaseModel

from guardalign_guardrails import SettingsError, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.testing.chats import canary, leaks_of, number_of, shows
from llama_index_guardalign import GuardedLLM, GuardVerdictEvent, guard_tool
from llama_index_guardalign.leaves import TOO_DEEP

RED, BLUE, WHITE = canary("red", number=1), canary("blue", number=2), canary("white", number=3)


class Photo(BaseModel):
    """A tool's own model."""

    title: str
    block: ImageBlock


@dataclasses.dataclass
class Shot:
    """A tool's own dataclass."""

    nodes: list[NodeWithScore]


RESULTS = {
    "a block": lambda image: ImageBlock(image=png(image)),
    "a list of blocks": lambda image: [TextBlock(text="a photo"), ImageBlock(url=data_url(image))],
    "a document": lambda image: DocumentBlock(data=png(image)),
    "a node": lambda image: ImageNode(image=b64(image), text="a photo"),
    "a list of nodes": lambda image: [ImageNode(image=b64(image), text="a photo")],
    "scored nodes": lambda image: [NodeWithScore(node=ImageNode(image=b64(image)), score=0.5)],
    "a response with sources": lambda image: Response("words", [NodeWithScore(node=ImageNode(image=b64(image)))]),
    "a message": lambda image: ask(image),
    "a PIL image": lambda image: image,
    "bytes": png,
    "a data URL": data_url,
    "a mapping": lambda image: {"deep": [{"photo": png(image), "title": "x"}]},
    "a pydantic object": lambda image: Photo(title="x", block=ImageBlock(image=png(image))),
    "a dataclass": lambda image: Shot([NodeWithScore(node=ImageNode(image=b64(image)))]),
}


def tool_of(result: Any) -> FunctionTool:
    def photo() -> Any:
        """Take a photo."""
        return result

    return FunctionTool.from_defaults(photo)


@pytest.mark.parametrize("make", RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("way", ["sync", "async"])
class TestWhatAToolReturns:
    async def outputs(self, way, tool) -> ToolOutput:
        return call_tool(tool, {}) if way == "sync" else await acall_tool(tool, {})

    async def test_is_masked_in_its_blocks_and_in_its_raw_output(self, guard, make, way):
        tool = tool_of(make(RED))
        output = await self.outputs(way, guard_tool(tool, guard))
        assert not output.is_error
        found = [*images_in(output.blocks), *images_in(output.raw_output)]
        assert found
        assert {(number_of(image), shows(image, "red")) for image in found} == {(1, False)}
        assert leaks_of(repr(output), RED) == []

    async def test_is_a_notice_if_it_is_blocked(self, guard, make, way):
        output = await self.outputs(way, guard_tool(tool_of(make(BLUE)), guard))
        assert images_in([output.blocks, output.raw_output]) == []
        # A node that has words of its own keeps them, and nothing else.
        assert NOTICE in repr(output) or "a photo" in repr(output)
        assert leaks_of(repr(output), BLUE) == []

    async def test_is_the_very_same_if_it_is_harmless_and_never_changed_in_place(self, guard, make, way):
        result = make(WHITE)
        output = await self.outputs(way, guard_tool(tool_of(result), guard))
        assert output.raw_output is result
        dangerous = make(RED)
        before = repr(dangerous)
        await self.outputs(way, guard_tool(tool_of(dangerous), guard))
        assert repr(dangerous) == before


class TestTheGuardedTool:
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    def test_every_kind_of_block_is_masked(self, guard, kind, tmp_path):
        output = guard_tool(tool_of(kind(RED, tmp_path)), guard)()
        assert [shows(image_of(block), "red") for block in output.blocks] == [False]

    def test_words_pass_as_they_are(self, guard):
        tool = tool_of({"text": "data: none", "n": [1, 2.5, None, True], "url": "https://example.org/x.png"})
        assert guard_tool(tool, guard)() == tool()

    def test_it_is_called_and_described_like_the_other(self, guard):
        tool = FunctionTool.from_defaults(lambda at: at, name="look", description="Look.", partial_params={"at": "it"})
        guarded = guard_tool(tool, guard)
        assert guarded.metadata is tool.metadata
        assert guarded.call().raw_output == "it"
        assert isinstance(guarded, FunctionTool)
        assert not hasattr(tool, "_filter"), "the other one is left as it is"

    @pytest.mark.parametrize("convert", ["to_langchain_tool", "to_langchain_structured_tool"])
    def test_it_becomes_no_langchain_tool_that_goes_past_the_guard(self, guard, convert):
        for tool in (tool_of(image_of(ImageBlock(image=png(RED)))), QueryEngineTool.from_defaults(None, name="q")):
            with pytest.raises(SettingsError, match="past the guard"):
                getattr(guard_tool(tool, guard), convert)()

    async def test_a_tool_that_wants_the_agents_context_is_given_it(self, guard):
        seen = []

        async def photo(ctx: Context) -> ImageBlock:
            """Take a photo."""
            seen.append(ctx)
            return ImageBlock(image=png(RED))

        # String annotations say nothing to LlamaIndex.
        photo.__annotations__ = {"ctx": Context, "return": ImageBlock}
        llm = RecordingLLM(call="photo")
        agent = FunctionAgent(tools=[guard_tool(FunctionTool.from_defaults(photo), guard)], llm=llm)
        handler = agent.run("Look")
        results = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
        await handler
        assert isinstance(seen[0], Context)
        assert [shows(image, "red") for image in images_in(results[0].tool_output)] == [False, False]
        assert [shows(pil_image, "red") for pil_image in llm.images] == [False]

    async def test_any_other_tool_is_guarded_too(self, guard):
        class Camera(BaseTool):
            """A tool of the old kind."""

            @property
            def metadata(self) -> ToolMetadata:
                return ToolMetadata(description="Take a photo.", name="camera")

            def __call__(self, input: Any = None) -> ToolOutput:  # noqa: A002  LlamaIndex's name
                block = ImageBlock(image=png(RED))
                return ToolOutput(tool_name="camera", blocks=[block], raw_input={}, raw_output=block)

        guarded = guard_tool(Camera(), guard)
        for output in (guarded("x"), await guarded.acall("x")):
            assert [shows(image, "red") for image in images_in(output)] == [False, False]

    def test_the_sources_of_a_query_engine_are_checked(self, guard):
        class Engine:
            """Answers with an image among its sources."""

            def query(self, query):
                return Response("words", [NodeWithScore(node=ImageNode(image=b64(RED)), score=0.5)])

        tool = QueryEngineTool.from_defaults(Engine(), name="ask", description="Ask.")
        guarded = guard_tool(tool, guard)
        output = guarded.call("What?")
        assert output.content == "words"
        assert not any(shows(image, "red") for image in images_in(output.raw_output))
        assert guarded.query_engine is tool.query_engine

    def test_an_error_says_nothing_of_the_image(self, guard):
        with Tracer() as tracer:
            output = call_tool(guard_tool(tool_of(ImageBlock(image=png(BLUE))), guard, on_violation="raise"), {})
        assert output.is_error
        assert isinstance(output.exception, UnsafeContentError)
        assert leaks_of(repr(output), BLUE) == []
        # A model that is told the category could probe the policy.
        assert "blue_things" not in output.content
        assert output.exception.verdict.category == "blue_things"
        assert [event.action for event in tracer.of(GuardVerdictEvent)] == ["block"]
        with pytest.raises(UnsafeContentError):
            guard_tool(tool_of(ImageNode(image=b64(BLUE))), guard, on_violation="raise")()

    @pytest.mark.parametrize("is_raised_by", ["the tool", "the guard"])
    async def test_what_a_model_and_a_user_read_of_an_error_does_not_help_to_probe(self, guard, is_raised_by):
        llm = GuardedLLM(llm=RecordingLLM(), guard=guard, on_violation="raise")

        def look() -> Any:
            """Look."""
            return llm.chat([ask(BLUE)]) if is_raised_by == "the tool" else ImageBlock(image=png(BLUE))

        async def alook() -> Any:
            """Look."""
            return look()

        tool = guard_tool(FunctionTool.from_defaults(look, async_fn=alook), guard, on_violation="raise")
        for output in (call_tool(tool, {}), await acall_tool(tool, {})):
            verdict = output.exception.verdict
            assert (verdict.category, verdict.action) == ("blue_things", "block")
            assert output.content == "Encountered error: The safety policy blocked an image of this result."
            assert verdict.digest[:8] not in output.content + str(output.raw_output)

    def test_what_is_nested_without_end_is_cut_off_and_the_rest_is_checked(self, guard):
        endless: list[Any] = [png(RED)]
        endless.append(endless)
        output = guard_tool(tool_of(endless), guard)()
        assert TOO_DEEP in repr(output.raw_output)
        assert leaks_of(repr(output.raw_output), RED) == []

    def test_a_long_table_of_numbers_passes_with_its_image_masked(self, guard):
        table = [[0.5] * 10 for _ in range(20_000)]
        output = guard_tool(tool_of({"table": table, "photo": png(RED)}), guard)()
        assert output.raw_output["table"] is table
        assert [shows(image, "red") for image in images_in(output)] == [False]

    def test_what_is_nested_too_deeply_to_be_looked_at_does_not_pass(self, guard):
        deep: Any = png(RED)
        for _ in range(40):
            deep = [deep]
        output = guard_tool(tool_of(deep), guard)()
        assert leaks_of(repr(output), RED) == []
        assert deep[0] is not None

    def test_one_image_in_several_places_is_one_in_all_of_them(self, guard):
        block, node = ImageBlock(image=png(RED)), ImageNode(image=b64(RED))
        output = guard_tool(tool_of({"a": block, "b": [block, node], "c": node, "d": TextNode(text="x")}), guard)()
        raw = output.raw_output
        assert raw["a"] is raw["b"][0]
        assert raw["c"] is raw["b"][1]
        assert raw["d"].text == "x"
