"""A chat that is screened without an LLM: what goes on, with which decision, and what is reported."""

from __future__ import annotations

import pytest
from llama_images import ask, image_of, said
from llama_index.core.base.llms.types import ChatMessage, ImageBlock
from llama_models import RecordingLLM, texts_of
from llama_seen import Tracer

from guardalign_guardrails import GuardSettings
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.testing.chats import canary, leaks, shows
from guardalign_guardrails.testing.colours import colour_guard, colour_policy
from llama_index_guardalign import GuardVerdictEvent, ascreen_chat, screen_chat

UNREADABLE = ChatMessage(blocks=[ImageBlock(url="https://example.org/x.png")])


@pytest.fixture(params=["sync", "async"])
def screened(request):
    async def run(*args, **options):
        return screen_chat(*args, **options) if request.param == "sync" else await ascreen_chat(*args, **options)

    return run


async def test_text_and_harmless_images_go_on_as_they_are(guard, screened):
    messages = [said("Hello"), ask(canary("white"))]
    chat = await screened(guard, messages)
    assert all(new is old for new, old in zip(chat.messages_for(RecordingLLM()), messages, strict=True))
    assert [verdict.action for verdict in chat.verdicts] == ["allow"]
    assert chat.by_message == [(), chat.verdicts]
    assert (chat.violation, chat.refusal, chat.decision.handled_by) == (None, None, "model")


async def test_a_masked_image_goes_on_with_the_prefix(guard, screened):
    chat = await screened(guard, [ask(canary("red"))])
    assert texts_of(chat.messages) == ["What is this?"]
    assert texts_of(chat.messages_for(RecordingLLM())) == ["Be careful.", "What is this?"]
    (message,) = chat.messages_for(RecordingLLM(), "user")
    assert texts_of([message]) == ["Be careful.\n\nWhat is this?"]
    (block,) = [block for block in message.blocks if isinstance(block, ImageBlock)]
    assert not shows(image_of(block), "red")


@pytest.mark.parametrize(("name", "roles"), [("gemma-2-9b-it", ["user"]), ("gpt-4o", ["system", "user"])])
async def test_the_llms_name_says_where_the_prefix_goes(guard, screened, name, roles):
    chat = await screened(guard, [ask(canary("red"))])
    assert [message.role.value for message in chat.messages_for(RecordingLLM(name=name))] == roles
    assert [m.role.value for m in chat.messages_for(RecordingLLM(name=name), "system")] == ["system", "user"]


async def test_a_blocked_or_routed_image_is_a_violation_and_a_notice_stands_in_its_place(guard, screened):
    for colour, action in {"blue": "block", "yellow": "route"}.items():
        secret = canary(colour)
        with Tracer() as tracer:
            chat = await screened(guard, [ask(secret)])
        assert (chat.violation.action, chat.refusal) == (action, guard.policy.refusal)
        assert NOTICE in texts_of(chat.messages)
        assert leaks(repr((chat, chat.messages)), secret) == []
        assert [event.component for event in tracer.of(GuardVerdictEvent)] == ["screen_chat"]
    assert (await screened(guard, [ask(canary("yellow"))], can_route=True)).decision.handled_by == "route"


async def test_one_of_an_earlier_turn_does_not_stop_a_chat(guard, screened):
    chat = await screened(guard, [ask(canary("blue")), said("no", "assistant"), said("And now?")])
    assert chat.violation is None
    assert [(verdict.action, verdict.source) for verdict in chat.verdicts] == [("block", "history")]


async def test_what_could_not_be_checked_reads_otherwise_than_what_is_unsafe(guard, screened):
    chat = await screened(guard, [UNREADABLE])
    assert chat.violation.finding == "unchecked"
    assert chat.refusal == guard.policy.refusal_unchecked != guard.policy.refusal
    assert texts_of(chat.messages) == [UNCHECKED_NOTICE]


@pytest.mark.parametrize("form", ["a guard", "a policy", "settings", "a path", "a path as text"])
async def test_a_guard_may_be_given_in_any_form(cache_dir, tmp_path, screened, form):
    policy = colour_policy()
    path = tmp_path / "policy.yaml"
    path.write_text(policy.to_yaml(), encoding="utf-8")
    given = {
        "a guard": colour_guard(cache_dir),
        "a policy": policy,
        "settings": GuardSettings(policy=policy),
        "a path": path,
        "a path as text": str(path),
    }[form]
    # Nothing has to be loaded to find that there is no image to open.
    chat = await screened(given, [said("Hello")])
    assert chat.policy == policy
    assert chat.decision.handled_by == "model"
