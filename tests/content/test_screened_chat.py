"""Whole chats are screened in one batch: sources follow from roles, every turn keeps its place, its text is found."""

from __future__ import annotations

import asyncio
import copy

import pytest

from guardalign_guardrails.content.screen import NOTICE, Turn
from guardalign_guardrails.content.screened_chat import ascreen_chats, screen_chats
from guardalign_guardrails.content.walk import TextBlock, find_text
from guardalign_guardrails.testing.chats import image_block, text_block
from guardalign_guardrails.testing.colours import colour_guard, painted


def shown(colour, role="user", **options):
    return Turn([text_block("look"), image_block(painted(colour))], role=role, **options)


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


def test_sources_follow_from_the_roles_unless_a_turn_has_its_own(guard):
    turns = [shown("white", role) for role in ("user", "assistant", "tool", "user")]
    (chat,) = screen_chats(guard, [[*turns, shown("white", source="retrieved")]])
    assert [verdict.source for verdict in chat.verdicts] == ["history", "generated", "tool", "user", "retrieved"]


def test_several_chats_make_one_batch_and_each_is_decided_alone(guard, monkeypatch):
    batches = []
    checking = guard.checking
    monkeypatch.setattr(guard, "checking", lambda *a, **k: batches.append(a) or checking(*a, **k))
    chats = screen_chats(guard, [[shown("blue")], [shown("white")], [], [shown("red")]])
    assert [chat.decision.handled_by for chat in chats] == ["refusal", "model", "model", "model"]
    assert [len(chat.verdicts) for chat in chats] == [1, 1, 0, 1]
    assert chats[3].decision.is_prefix_due
    assert len(batches) == 1


@pytest.mark.parametrize(
    ("on_violation", "handled_by"), [("refuse", "refusal"), ("raise", "error"), ("notice", "model")]
)
def test_the_rule_for_violations_is_handed_on(guard, on_violation, handled_by):
    (chat,) = screen_chats(guard, [[shown("blue")]], on_violation=on_violation)
    assert chat.decision.handled_by == handled_by
    assert chat.turns[0].content[1] == text_block(NOTICE)


def test_routing_is_handed_on(guard):
    (chat,) = screen_chats(guard, [[shown("yellow")]], can_route=True)
    assert chat.decision.handled_by == "route"


def test_what_did_not_change_is_the_very_same_object(guard):
    clean, masked = shown("white"), shown("red")
    before = copy.deepcopy(masked.content)
    (chat,) = screen_chats(guard, [[clean, masked]])
    assert [turn.is_changed for turn in chat.turns] == [False, True]
    assert chat.turns[0].content is clean.content
    assert masked.content == before


def test_async_does_the_same(guard):
    chats = [[shown("red"), shown("blue", "tool")], [Turn("Hi")]]
    later, now = asyncio.run(ascreen_chats(guard, chats)), screen_chats(guard, chats)
    assert [[turn.content for turn in chat.turns] for chat in later] == [
        [turn.content for turn in chat.turns] for chat in now
    ]
    assert [[verdict.action for verdict in chat.verdicts] for chat in later] == [["mask", "block"], []]
    assert [chat.decision.handled_by for chat in later] == ["model", "model"]


def test_text_is_found_beside_the_images(guard):
    result = {"type": "tool_result", "content": [text_block("42"), image_block(painted("white"))]}
    (chat,) = screen_chats(guard, [[Turn("Hi"), Turn(["Here", result], role="tool"), Turn({"a": "b"}, is_loose=True)]])
    assert [turn.texts for turn in chat.turns] == [
        (TextBlock((), "Hi"),),
        (TextBlock((0,), "Here"), TextBlock((1, "content", 0, "text"), "42")),
        (),
    ]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (None, []),
        ("", [""]),
        ([], []),
        (text_block("a"), ["a"]),
        ([{"type": "input_text", "text": "a"}, {"text": "b"}], ["a", "b"]),
        ([{"type": "refusal", "refusal": "a"}], ["a"]),
        ({"type": "function_call_output", "output": "a"}, ["a"]),
        ([{"type": "document", "source": {"type": "text", "data": "a"}}], ["a"]),
        ([{"type": "document", "source": {"type": "content", "content": [text_block("a")]}}], ["a"]),
        ([{"type": "document", "source": {"type": "base64", "data": "AAAA"}}], []),
        ([{"type": "tool_use", "input": {"text": "a"}}], []),
        ([{"type": "thinking", "thinking": "a"}], []),
    ],
)
def test_text_is_what_was_said(content, texts):
    assert [block.text for block in find_text(content)] == texts


def test_content_without_end_ends():
    endless = []
    endless += [endless, "a"]
    assert 0 < len(find_text(endless)) < 100
