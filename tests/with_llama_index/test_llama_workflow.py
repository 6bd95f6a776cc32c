"""A workflow with a step that checks images."""

from __future__ import annotations

from llama_images import ask, image_of, said
from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llama_models import texts_of
from llama_seen import Tracer

from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.testing.chats import canary, leaks, shows
from llama_index_guardalign import CheckImages, GuardVerdictEvent, ImagesBlocked, ImagesPassed, add_guard_step


def flow_of(guard, **settings):
    class Flow(Workflow):
        """Answers with the event that its check ended in."""

        @step
        async def begin(self, ev: StartEvent) -> CheckImages:
            return CheckImages(messages=ev.chat)

        @step
        async def answer(self, ev: ImagesPassed) -> StopEvent:
            return StopEvent(result=ev)

        @step
        async def refuse(self, ev: ImagesBlocked) -> StopEvent:
            return StopEvent(result=ev)

    add_guard_step(Flow, guard, **settings)
    return Flow()


async def test_words_and_harmless_images_go_on_as_they_are(guard):
    chat = [said("Hello"), ask(canary("white"))]
    event = await flow_of(guard).run(chat=chat)
    assert isinstance(event, ImagesPassed)
    assert event.messages == chat
    assert (event.action, len(event.verdicts)) == ("allow", 1)


async def test_a_masked_image_goes_on_with_the_prefix(guard):
    event = await flow_of(guard, placement="user").run(chat=[ask(canary("red"))])
    assert event.action == "mask"
    assert texts_of(event.messages) == ["Be careful.\n\nWhat is this?"]
    (block,) = [block for block in event.messages[0].blocks if isinstance(block, ImageBlock)]
    assert not shows(image_of(block), "red")


async def test_a_blocked_or_routed_one_goes_the_other_way_with_a_notice(guard):
    for colour, action in {"blue": "block", "yellow": "route"}.items():
        secret = canary(colour)
        with Tracer() as tracer:
            event = await flow_of(guard).run(chat=[ask(secret)])
        assert isinstance(event, ImagesBlocked)
        assert (event.action, event.refusal) == (action, guard.policy.refusal)
        assert NOTICE in texts_of(event.messages)
        assert leaks(repr(event), secret) == []
        assert [one.component for one in tracer.of(GuardVerdictEvent)] == ["add_guard_step"]


async def test_one_of_an_earlier_turn_does_not_stop_a_chat(guard):
    event = await flow_of(guard).run(chat=[ask(canary("blue")), said("no", "assistant"), said("And now?")])
    assert isinstance(event, ImagesPassed)
    assert (event.action, event.verdicts[0]["source"]) == ("block", "history")
