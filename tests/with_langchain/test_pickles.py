"""Every component comes back from a pickle with a guard, before and after its first use, or says what it holds."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from typing import Any

import pytest
from chat_images import MASKED, ask, blocks, image_of
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableLambda

from guardalign_guardrails import Guard, GuardSettings, NotPicklable
from guardalign_guardrails.testing.colours import ColourEncoder, colour_guard, colour_policy, painted
from langchain_guardalign import (
    GuardAlignMiddleware,
    GuardedChatModel,
    ImageDocumentCompressor,
    ImageDocumentTransformer,
    ImageGuard,
)
from langchain_guardalign.testing.agents import AgentChat
from langchain_guardalign.testing.messages import call_sync
from langchain_guardalign.testing.recording import RecordingModel

RED = ask(painted("red"))


def guarded_model(guard: Any) -> GuardedChatModel:
    return GuardedChatModel(model=RecordingModel(), guard=guard, on_violation="notice")


def given_to(component: Any) -> list[BaseMessage]:
    """What passes a component that is given an unsafe image."""
    if isinstance(component, GuardAlignMiddleware):
        chat = AgentChat(component, call_sync)
        chat.say(RED)
        return chat.model.received[-1]
    if isinstance(component, GuardedChatModel):
        component.invoke(RED)
        return component.model.received[-1]
    return component.invoke(RED)


def is_guarded(component: Any) -> bool:
    """Whether a component masks; also run in another process."""
    given = blocks(given_to(component))
    (image,) = [image_of(block) for block in given if isinstance(block, dict) and "base64" in block]
    return image.tobytes() == MASKED.tobytes()


MAKERS = {
    "ImageGuard": ImageGuard,
    "GuardedRoute": lambda guard: ImageGuard(guard).route(RunnableLambda(list), RunnableLambda(list)),
    "GuardedChatModel": guarded_model,
    "GuardAlignMiddleware": GuardAlignMiddleware,
}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def make(request):
    return request.param


@pytest.mark.parametrize("is_used", [False, True])
class TestCopies:
    def test_a_pickle_comes_back_with_its_guard(self, make, cache_dir, is_used):
        component = make(colour_guard(cache_dir))
        if is_used:
            assert is_guarded(component)
        back = pickle.loads(pickle.dumps(component))
        assert back.guard.policy == colour_policy()
        assert isinstance(back.guard.guard.detector.encoder, ColourEncoder)
        assert is_guarded(back)

    def test_a_deep_copy_has_the_same_guard(self, make, cache_dir, is_used):
        guard = colour_guard(cache_dir)
        component = make(guard)
        if is_used:
            assert is_guarded(component)
        again = copy.deepcopy(component)
        assert again.guard.guard is guard
        assert is_guarded(again)


def test_one_made_of_settings_comes_back_with_them_and_without_what_was_loaded(make, cache_dir):
    component = make(GuardSettings(policy=colour_policy(), cache_dir=cache_dir))
    before = pickle.dumps(component)
    assert component.guard.guard is not None
    # What names itself by its members' names may differ by a few letters; weights are millions.
    assert abs(len(pickle.dumps(component)) - len(before)) < 100
    assert pickle.loads(before).guard == component.guard


def test_structured_output_comes_back_with_its_guard(cache_dir):
    structured = structured_of(colour_guard(cache_dir))
    back = pickle.loads(pickle.dumps(structured))
    assert back.guarded.guard.policy == colour_policy()
    assert copy.deepcopy(structured).guarded.guard.guard is structured.guarded.guard.guard


def structured_of(guard: Guard) -> Any:
    return GuardedChatModel(model=Structured(), guard=guard).with_structured_output(dict)


class Structured(RecordingModel):
    """Gives structured output that pickles."""

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **kwargs: Any) -> Any:
        return self


class Unpicklable(ColourEncoder):
    """An encoder that holds what no pickle can."""

    def __init__(self) -> None:
        super().__init__()
        self.hook = lambda: None


class TestWhatCannotBePickled:
    def test_an_encoder_is_named(self, make, cache_dir):
        component = make(Guard(colour_policy(), Unpicklable(), cache_dir=cache_dir))
        with pytest.raises(NotPicklable) as caught:
            pickle.dumps(component)
        assert caught.value.member == "encoder"

    @pytest.mark.parametrize(
        ("member", "component"),
        [
            ("safe", lambda guard: ImageGuard(guard).route(lambda messages: messages, RunnableLambda(list))),
            ("model", lambda guard: GuardedChatModel(model=_model_with_a_lambda(), guard=guard)),
            ("route_to", lambda guard: GuardAlignMiddleware(guard, route_to=_model_with_a_lambda())),
            ("quarantine", lambda guard: ImageDocumentTransformer(guard=guard, quarantine=lambda *_: None)),
            ("quarantine", lambda guard: ImageDocumentCompressor(guard=guard, quarantine=lambda *_: None)),
        ],
    )
    def test_any_other_member_is_named(self, cache_dir, member, component):
        with pytest.raises(NotPicklable) as caught:
            pickle.dumps(component(colour_guard(cache_dir)))
        assert caught.value.member == member


def _model_with_a_lambda() -> RecordingModel:
    class Local(RecordingModel):
        pass

    return Local()


def test_a_spawned_process_guards_too(cache_dir):
    guard = colour_guard(cache_dir)
    components = [make(guard) for make in (ImageGuard, guarded_model, GuardAlignMiddleware)]
    assert all(map(is_guarded, components))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(is_guarded, components) == [True] * 3
