"""Screens a request's body: its parts make a chat, and what the chat becomes goes back into the body.

The integrations that stand between an app and a provider share it. `parts` knows where an API keeps its content,
`screened_chat` screens and decides, and `prefix` knows where the safety prefix goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypedDict

from guardalign_guardrails.content.bodies.masks import is_mask, may_stay
from guardalign_guardrails.content.bodies.parts import Body, Form, Part, parts_of
from guardalign_guardrails.content.bodies.prefix import with_prefix
from guardalign_guardrails.content.bodies.transcripts import Unfolded, unfold
from guardalign_guardrails.content.chat import ChatDecision, OnViolation, PlacementSetting
from guardalign_guardrails.content.rewrite import with_blocks
from guardalign_guardrails.content.screened_chat import ScreenedChat, ascreen_chats, screen_chats
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.verdict import Verdict


@dataclass(frozen=True)
class BodyRules:
    """What the findings in a body mean, beside its policy.

    Attributes:
        on_violation: What a blocked image of the current user turn means.
        route_to: Name of the model for bodies whose severest action is ``route``; without one they are blocked.
        placement: Where the prefix goes; ``auto`` follows the name of the model that answers.
        reads_text: Whether data URLs that stand in text are images too, as where a chat is handed on as text.
    """

    on_violation: OnViolation = "refuse"
    route_to: str | None = None
    placement: PlacementSetting = "auto"
    reads_text: bool = False


DEFAULT_RULES: Final = BodyRules()


@dataclass(frozen=True)
class ScreenedBody:
    """A body that was screened.

    Attributes:
        body: The sanitised body, with the prefix if it is due; the very same object if nothing changed.
        verdicts: All verdicts, in reading order.
        decision: Who answers. In a body of form ``other`` there is no place for a refusal or a notice, so that what is
            blocked or routed is an error. So is a mask of an edit that would have to change.
    """

    body: Body = field(repr=False)
    verdicts: tuple[Verdict, ...]
    decision: ChatDecision


def screen_body(guard: Guard, body: Body, form: Form, rules: BodyRules = DEFAULT_RULES) -> ScreenedBody:
    """Check a request's body; all images in it make one batch.

    Args:
        guard: Checks.
        body: The body, or the keyword arguments from which a client makes it.
        form: The API it is for.
        rules: What the findings mean.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile.
    """
    unfolded = _unfolded(body, form, rules)
    parts = parts_of(unfolded.body, form)
    (chat,) = screen_chats(guard, [[part.turn() for part in parts]], **_settings(form, rules))
    return _screened(guard.policy, body, form, unfolded, parts, chat, rules)


async def ascreen_body(guard: Guard, body: Body, form: Form, rules: BodyRules = DEFAULT_RULES) -> ScreenedBody:
    """`screen_body` without blocking the event loop."""
    unfolded = _unfolded(body, form, rules)
    parts = parts_of(unfolded.body, form)
    (chat,) = await ascreen_chats(guard, [[part.turn() for part in parts]], **_settings(form, rules))
    return _screened(guard.policy, body, form, unfolded, parts, chat, rules)


class _ChatSettings(TypedDict):
    on_violation: OnViolation
    can_route: bool


def _settings(form: Form, rules: BodyRules) -> _ChatSettings:
    if form == "other":
        return {"on_violation": "raise", "can_route": False}
    return {"on_violation": rules.on_violation, "can_route": rules.route_to is not None}


def _unfolded(body: Body, form: Form, rules: BodyRules) -> Unfolded:
    return unfold(body, reads_text=rules.reads_text) if form in ("chat", "responses") else Unfolded(body, {})


def _screened(
    policy: Policy,
    body: Body,
    form: Form,
    unfolded: Unfolded,
    parts: Sequence[Part],
    chat: ScreenedChat,
    rules: BodyRules,
) -> ScreenedBody:
    pairs = [(part, turn) for part, turn in zip(parts, chat.turns, strict=True) if turn.is_changed]
    masks = [(part, turn.verdicts) for part, turn in pairs if is_mask(part.path)]
    changed = {part.path: part.screened(turn.content) for part, turn in pairs if not is_mask(part.path)}
    new: Body = unfolded.folded(with_blocks(unfolded.body, changed)) if changed else body
    decision = chat.decision
    if decision.violation is None:
        refused = [verdicts for part, verdicts in masks if not may_stay(part.value, verdicts)]
        decision = ChatDecision("error", refused[0][0], is_prefix_due=False) if refused else decision
    if decision.is_prefix_due:
        model = rules.route_to if decision.handled_by == "route" else None
        new = with_prefix(new, form, policy.prefix, rules.placement, model)
    return ScreenedBody(new, chat.verdicts, decision)
