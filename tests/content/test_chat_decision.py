"""Who answers a chat, by what was found in it."""

from __future__ import annotations

import pytest

from guardalign_guardrails import Policy, Verdict
from guardalign_guardrails.content.chat import decide_chat, sources

CHAT = ("system", "user", "assistant", "tool", "user", "user", "assistant", "tool")


def verdict(action, source):
    return Verdict(digest="", source=source, action=action, proposed=action)


def decided(found, **settings):
    """A decision on a chat with one finding: which message it is in, and the action."""
    index, action = found
    own = [(verdict(action, source),) if place == index else () for place, source in enumerate(sources(CHAT))]
    return decide_chat(Policy.default(), CHAT, own, **settings)


def test_sources_follow_from_role_and_place():
    assert sources(CHAT) == ["user", "history", "generated", "tool", "user", "user", "generated", "tool"]


@pytest.mark.parametrize("index", [4, 5])
@pytest.mark.parametrize(
    ("on_violation", "handled_by"), [("refuse", "refusal"), ("raise", "error"), ("notice", "model")]
)
@pytest.mark.parametrize("action", ["block", "route"])
def test_a_blocked_image_of_this_turn_keeps_the_model_from_answering(index, on_violation, handled_by, action):
    decision = decided((index, action), on_violation=on_violation)
    assert decision.handled_by == handled_by
    assert (decision.violation is None) == (handled_by == "model")


def test_a_routed_image_goes_to_the_other_model_if_there_is_one():
    assert decided((4, "route"), can_route=True).handled_by == "route"
    assert decided((4, "block"), can_route=True).handled_by == "refusal"


@pytest.mark.parametrize("index", [0, 1, 2, 3, 6, 7])
def test_images_of_the_app_of_earlier_turns_and_of_tools_stop_no_chat(index):
    assert decided((index, "block")).handled_by == "model"


@pytest.mark.parametrize("action", ["allow", "flag", "prefix", "mask"])
def test_what_may_pass_is_answered_by_the_model_and_some_of_it_with_a_prefix(action):
    decision = decided((4, action))
    assert decision.handled_by == "model"
    assert decision.is_prefix_due == (action in ("prefix", "mask"))
