"""Who answers a chat, by what was found in it."""

from __future__ import annotations

import pytest

from guardalign_guardrails import Policy, Verdict
from guardalign_guardrails.content.ruling import rule, sources

CHAT = ("system", "user", "assistant", "tool", "user", "user", "assistant", "tool")


def verdict(action, source):
    return Verdict(digest="", source=source, action=action, proposed=action)


def ruled(found, **settings):
    """A ruling on a chat with one finding: which message it is in, and the action."""
    index, action = found
    own = [(verdict(action, source),) if place == index else () for place, source in enumerate(sources(CHAT))]
    return rule(Policy.default(), CHAT, own, **settings)


def test_sources_follow_from_role_and_place():
    assert sources(CHAT) == ["user", "history", "generated", "tool", "user", "user", "generated", "tool"]


@pytest.mark.parametrize("index", [4, 5])
@pytest.mark.parametrize(("on_violation", "answerer"), [("refuse", "refusal"), ("raise", "error"), ("notice", "model")])
@pytest.mark.parametrize("action", ["block", "route"])
def test_a_blocked_picture_of_this_turn_keeps_the_model_from_answering(index, on_violation, answerer, action):
    ruling = ruled((index, action), on_violation=on_violation)
    assert ruling.answerer == answerer
    assert (ruling.offender is None) == (answerer == "model")


def test_a_routed_picture_goes_to_the_other_model_if_there_is_one():
    assert ruled((4, "route"), can_route=True).answerer == "route"
    assert ruled((4, "block"), can_route=True).answerer == "refusal"


@pytest.mark.parametrize("index", [0, 1, 2, 3, 6, 7])
def test_pictures_of_the_app_of_earlier_turns_and_of_tools_stop_no_chat(index):
    assert ruled((index, "block")).answerer == "model"


@pytest.mark.parametrize("action", ["allow", "flag", "prefix", "mask"])
def test_what_may_pass_is_answered_by_the_model_and_some_of_it_with_a_prefix(action):
    ruling = ruled((4, action))
    assert ruling.answerer == "model"
    assert ruling.is_prefix_due == (action in ("prefix", "mask"))
