"""What is to become of a chat: who its images come from, and by what was found in them, whether a model may answer.

The verdicts of the current user turn decide. Images of earlier turns, of tools, of models and of the app's own system
message are replaced by a notice if they are blocked, and the chat goes on: it never could otherwise. Roles and verdicts
only; message classes, prefixes and refusals are the callers' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from guardalign_guardrails.decision import is_prefix_due
from guardalign_guardrails.policy import Policy, Source
from guardalign_guardrails.verdict import Verdict

Role = Literal["system", "user", "assistant", "tool"]
"""Who says a message; an app's own instructions are ``system``, whatever a provider calls them."""

OnViolation = Literal["refuse", "notice", "raise"]
"""What a blocked image of the current user turn means: the policy's refusal answers and no model is asked, a model
answers with a notice in the image's place, or `UnsafeContentError` is raised."""

Answerer = Literal["model", "route", "refusal", "error"]


@dataclass(frozen=True)
class Ruling:
    """The decision on one chat.

    Attributes:
        answerer: Who answers: the model, the one for routed chats, the policy's refusal, or an error that is raised.
        offender: The verdict that keeps the model from answering; None if it answers.
        is_prefix_due: Whether the one who answers is given the safety prefix.
    """

    answerer: Answerer
    offender: Verdict | None
    is_prefix_due: bool


def sources(roles: Sequence[Role]) -> list[Source]:
    """Where the content of each message of a chat came from.

    The last unbroken run of user messages is what the ``user`` says now, earlier ones are ``history``; tools and models
    are ``tool`` and ``generated`` wherever they stand; a system message counts as ``user``.
    """
    last = next((i for i in reversed(range(len(roles))) if roles[i] == "user"), 0)
    first = last
    while first > 0 and roles[first - 1] == "user":
        first -= 1
    return [_source(role, is_past=index < first) for index, role in enumerate(roles)]


def offender(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The verdict that keeps an input from a model that was not made for it; None if there is none."""
    return next((v for action in ("block", "route") for v in verdicts if v.action == action), None)


def rule(
    policy: Policy,
    roles: Sequence[Role],
    by_message: Sequence[Sequence[Verdict]],
    *,
    on_violation: OnViolation = "refuse",
    can_route: bool = False,
) -> Ruling:
    """Decide on a chat that was screened.

    Args:
        policy: Says when a prefix is due.
        roles: Of its messages.
        by_message: The verdicts of each.
        on_violation: What a blocked image of the current user turn means.
        can_route: Whether there is a model for chats whose severest action is ``route``; they are blocked otherwise.
    """
    pairs = zip(roles, by_message, strict=True)
    found = offender([v for role, own in pairs if role != "system" for v in own if v.source == "user"])
    is_due = is_prefix_due(policy, [verdict.action for own in by_message for verdict in own])
    if found is None:
        return Ruling("model", None, is_due)
    if found.action == "route" and can_route:
        return Ruling("route", found, is_due)
    if on_violation == "notice":
        return Ruling("model", None, is_due)
    return Ruling("refusal" if on_violation == "refuse" else "error", found, False)


def _source(role: Role, *, is_past: bool) -> Source:
    if role == "tool":
        return "tool"
    if role == "assistant":
        return "generated"
    return "history" if is_past and role == "user" else "user"
