"""Copies of components keep their guard: pickled before and after first use, deep-copied, or a typed error."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
from llama_images import ask, png
from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.tools import FunctionTool
from llama_index.core.tools.types import AsyncBaseTool, ToolMetadata, ToolOutput
from llama_models import RecordingLLM
from llama_nodes import images_in

from guardalign_guardrails import GuardSettings
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.errors import ModelUnavailable, NotPicklable
from guardalign_guardrails.testing.chats import canary, shows
from guardalign_guardrails.testing.colours import colour_guard, colour_policy
from llama_index_guardalign import GuardAlignLVLM, GuardedLLM, guard_tool

RED, BLUE = canary("red", number=1), canary("blue", number=2)


class Camera(AsyncBaseTool):
    """A tool that pickles."""

    @property
    def metadata(self) -> ToolMetadata:
        return ToolMetadata(description="Take a photo.", name="camera")

    def call(self, *args, **kwargs) -> ToolOutput:
        block = ImageBlock(image=png(RED))
        return ToolOutput(tool_name="camera", blocks=[block], raw_input={}, raw_output=block)

    async def acall(self, *args, **kwargs) -> ToolOutput:
        return self.call()


def photo() -> ImageBlock:
    """Take a photo."""
    return ImageBlock(image=png(RED))


@pytest.fixture
def locked(cache_dir):
    """A guard that holds something which cannot be pickled."""
    guard = colour_guard(cache_dir)
    guard._given["encoder"] = threading.Lock()
    return guard


@pytest.mark.parametrize("is_used", [False, True])
class TestAGuardedLLM:
    def test_pickles_with_its_guard(self, guard, is_used):
        guarded = GuardedLLM(llm=RecordingLLM(), guard=guard, on_violation="raise", placement="user")
        if is_used:
            guarded.chat([ask(RED)])
        back = pickle.loads(pickle.dumps(guarded))
        assert back.guard.policy == guard.policy
        assert (back.on_violation, back.placement) == ("raise", "user")
        back.chat([ask(RED)])
        assert [shows(image, "red") for image in back.llm.images[-1:]] == [False]

    def test_pickles_with_settings(self, is_used):
        guarded = GuardedLLM(llm=RecordingLLM(), guard=GuardSettings(policy=colour_policy(), encoder="no/such"))
        assert pickle.loads(pickle.dumps(guarded)).guard == guarded.guard

    def test_is_deep_copied_with_the_same_guard(self, locked, is_used):
        guarded = GuardedLLM(llm=RecordingLLM(), guard=locked, route_to=RecordingLLM())
        if is_used:
            guarded.chat([ask(RED)])
        other = copy.deepcopy(guarded)
        assert other.guard.guard is locked
        assert other.llm is not guarded.llm
        other.chat([ask(RED)])
        assert [shows(image, "red") for image in other.llm.images[-1:]] == [False]

    def test_is_an_error_rather_than_a_copy_without_its_guard(self, locked, is_used):
        guarded = GuardedLLM(llm=RecordingLLM(), guard=locked)
        if is_used:
            guarded.chat([ask(RED)])
        with pytest.raises(NotPicklable, match="encoder"):
            pickle.dumps(guarded)

    @pytest.mark.parametrize("name", ["llm", "route_to"])
    def test_is_an_error_rather_than_a_copy_without_an_llm(self, guard, monkeypatch, is_used, name):
        class Local(RecordingLLM):
            """Of a class that no other process can import."""

        llms = {"llm": RecordingLLM(), name: Local()}
        with pytest.raises(NotPicklable, match=rf"{name} \(Local\)"):
            pickle.dumps(GuardedLLM(**llms, guard=guard))


class TestALocalLLM:
    def test_is_an_error_rather_than_a_copy_without_its_guard(self, locked):
        with pytest.raises(NotPicklable, match="encoder"):
            pickle.dumps(GuardAlignLVLM(model_name="nowhere/model", guard=locked))

    def test_is_an_error_rather_than_a_copy_that_loads_another_model(self):
        llm = GuardAlignLVLM(model_name="nowhere/model", model_kwargs={"lock": threading.Lock()})
        with pytest.raises(NotPicklable, match=r"model_kwargs \(dict\)"):
            pickle.dumps(llm)

    def test_pickles_with_its_guard_and_can_be_used(self, guard):
        llm = GuardAlignLVLM(model_name="nowhere/model", guard=guard, local_files_only=True)
        back = pickle.loads(pickle.dumps(llm))
        assert back.guard.policy == guard.policy
        assert copy.deepcopy(back).guard is back.guard
        with pytest.raises(ModelUnavailable, match="nowhere/model"):
            back.complete("Hi")

    def test_pickles_after_its_first_use(self, smollm2, guard):
        llm = GuardAlignLVLM.from_lvlm(
            CalibratedLVLM(smollm2.model, smollm2.processor, calibration=None, guard=guard), max_tokens=1
        )
        llm.complete("Hi")
        back = pickle.loads(pickle.dumps(llm))
        assert back.to_dict() == llm.to_dict()
        assert back.guard.policy == guard.policy
        assert back._lvlm is None


@pytest.mark.parametrize("is_used", [False, True])
class TestAGuardedTool:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda tool: pickle.loads(pickle.dumps(tool))])
    def test_is_copied_with_its_guard(self, guard, copied, is_used):
        tool = guard_tool(Camera(), guard, on_violation="raise")
        if is_used:
            tool.call()
        other = copied(tool)
        assert other.metadata == tool.metadata
        assert [shows(image, "red") for image in images_in(other.call().blocks)] == [False]

    def test_is_deep_copied_with_the_same_guard(self, locked, is_used):
        for tool in (guard_tool(Camera(), locked), guard_tool(FunctionTool.from_defaults(photo), locked)):
            if is_used:
                tool.call()
            other = copy.deepcopy(tool)
            assert type(other) is type(tool)
            assert other._filter.settings.guard is locked
            assert [shows(image, "red") for image in images_in(other.call().blocks)] == [False]

    def test_is_an_error_rather_than_a_copy_without_its_guard(self, locked, is_used):
        with pytest.raises(NotPicklable, match="encoder"):
            pickle.dumps(guard_tool(Camera(), locked))

    def test_is_an_error_if_the_tool_cannot_be_pickled(self, guard, is_used):
        # LlamaIndex's function tools hold closures.
        with pytest.raises(NotPicklable, match=r"tool \(FunctionTool\)"):
            pickle.dumps(guard_tool(FunctionTool.from_defaults(photo), guard))
