"""Screens requests to hosted models as plain data: a body in, a sanitised body and a decision out.

The integrations that stand between an app and a provider share it. `body_parts` knows where an API keeps its content,
`screened_chat` screens and decides, and this puts the results and the safety prefix back into the body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypedDict

from guardalign_guardrails.content.body_parts import Body, Form, Part, nested_bodies, parts_of
from guardalign_guardrails.content.chat import (
    ChatDecision,
    OnViolation,
    Placement,
    PlacementSetting,
    headed,
    placement_for,
)
from guardalign_guardrails.content.rewrite import block_at, with_blocks
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
        placement: Where the prefix goes; ``auto`` for where the model wants it that the body names.
    """

    on_violation: OnViolation = "refuse"
    route_to: str | None = None
    placement: PlacementSetting = "auto"


DEFAULT_RULES: Final = BodyRules()

_ROLES: Final[Mapping[Placement, tuple[str, ...]]] = {"system": ("system", "developer"), "user": ("user",)}


@dataclass(frozen=True)
class ScreenedBody:
    """A body that was screened.

    Attributes:
        body: What the one who answers may be given, the prefix included; the very same object if nothing changed.
        verdicts: All that was found, in reading order.
        decision: Who answers. In a body of form ``other`` there is no place for a refusal or a notice, so that what is
            blocked or routed is an error.
    """

    body: Body = field(repr=False)
    verdicts: tuple[Verdict, ...]
    decision: ChatDecision


def screen_body(guard: Guard, body: Body, form: Form, rules: BodyRules = DEFAULT_RULES) -> ScreenedBody:
    """Check a request's body; all images in it make one batch.

    Args:
        guard: Checks.
        body: What an app sends, or the keyword arguments from which it is made.
        form: The API it is for.
        rules: What the findings mean.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile.
    """
    parts = parts_of(body, form)
    (chat,) = screen_chats(guard, [[part.turn() for part in parts]], **_settings(form, rules))
    return _screened(guard.policy, body, form, parts, chat, rules)


async def ascreen_body(guard: Guard, body: Body, form: Form, rules: BodyRules = DEFAULT_RULES) -> ScreenedBody:
    """`screen_body` without blocking the event loop."""
    parts = parts_of(body, form)
    (chat,) = await ascreen_chats(guard, [[part.turn() for part in parts]], **_settings(form, rules))
    return _screened(guard.policy, body, form, parts, chat, rules)


def with_prefix(
    body: Body, form: Form, prefix: str, placement: PlacementSetting = "auto", model: str | None = None
) -> Body:
    """A body with the safety prefix, once; itself if it is there, or if the form has no place for it.

    With ``system`` it goes to the head of the app's own instructions, which are made if there are none; with ``user``
    to the head of the first message of the user. Bodies within the body that bring instructions or messages of their
    own, which replace those around them, are given it as well.

    Args:
        body: The body.
        form: The API it is for.
        prefix: The safety prefix.
        placement: Where it goes; ``auto`` follows the model's name.
        model: Name of the model; None for the one that the body names.
    """
    prefix = prefix.strip()
    if not prefix or form == "other":
        return body
    model = model or _model_of(body)
    new = _prefixed(body, form, prefix, placement_for(model, placement), is_whole=True)
    for path in nested_bodies(new):
        inner = block_at(new, path)
        own = placement_for(_model_of(inner) or model, placement)
        if (headed_inner := _prefixed(inner, form, prefix, own, is_whole=False)) is not inner:
            new = with_blocks(new, {path: headed_inner})
    return new


def _model_of(body: Body) -> str | None:
    model = body.get("model")
    return model if isinstance(model, str) else None


class _ChatSettings(TypedDict):
    on_violation: OnViolation
    can_route: bool


def _settings(form: Form, rules: BodyRules) -> _ChatSettings:
    if form == "other":
        return {"on_violation": "raise", "can_route": False}
    return {"on_violation": rules.on_violation, "can_route": rules.route_to is not None}


def _screened(
    policy: Policy, body: Body, form: Form, parts: Sequence[Part], chat: ScreenedChat, rules: BodyRules
) -> ScreenedBody:
    changed = {
        part.path: part.screened(turn.content) for part, turn in zip(parts, chat.turns, strict=True) if turn.is_changed
    }
    new: Body = with_blocks(body, changed)
    if chat.decision.is_prefix_due:
        model = rules.route_to if chat.decision.handled_by == "route" else None
        new = with_prefix(new, form, policy.prefix, rules.placement, model)
    return ScreenedBody(new, chat.verdicts, chat.decision)


def _prefixed(body: Body, form: Form, prefix: str, placement: Placement, *, is_whole: bool) -> Body:
    if form == "chat":
        return _headed_message(body, "messages", prefix, placement)
    if form == "messages":
        if placement == "user":
            return _headed_message(body, "messages", prefix, placement)
        return _headed_text(body, "system", prefix) if is_whole or "system" in body else body
    if placement == "system":
        # A stored prompt brings instructions of its own, which those of the body would replace.
        if body.get("instructions") is not None or (is_whole and not body.get("prompt")):
            return _headed_text(body, "instructions", prefix)
        if not is_whole:
            return body
    whole = body if "input" in body or not is_whole else {**body, "input": []}
    return _headed_message(whole, "input", prefix, placement, "input_text")


def _headed_text(body: Body, key: str, prefix: str) -> Body:
    old = body.get(key)
    new = headed(old, prefix)
    return body if new is old else {**body, key: new}


def _headed_message(body: Body, key: str, prefix: str, placement: Placement, text_type: str = "text") -> Body:
    """The body with a text at the head of its first message of a role, which is made if there is none."""
    messages = body.get(key)
    roles = _ROLES[placement]
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list | tuple):
        return body
    for index, message in enumerate(messages):
        if isinstance(message, Mapping) and message.get("role") in roles:
            old = message.get("content")
            new = headed(old, prefix, text_type=text_type)
            return body if new is old else with_blocks({**body, key: messages}, {(key, index, "content"): new})
    return {**body, key: [{"role": roles[0], "content": prefix}, *messages]}
