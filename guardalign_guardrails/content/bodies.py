"""Requests to hosted models as plain data: bodies in, sanitised bodies and a decision out.

What the integrations that sit between an app and a provider share. `body_parts` knows where an API keeps its messages
and `chat` where it wants the safety prefix; this puts them together with screening and the decision. Sync and async
differ in one line, the call to the guard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from guardalign_guardrails.content import screen as core
from guardalign_guardrails.content.body_parts import Body, Form, Part, nested_bodies, parts_of
from guardalign_guardrails.content.chat import ChatDecision, OnViolation, Placement, decide_chat, headed
from guardalign_guardrails.content.rewrite import block_at, with_blocks
from guardalign_guardrails.content.screen import Screened, Turn
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.verdict import Verdict


@dataclass(frozen=True)
class BodyRules:
    """What becomes of a body, beside its policy.

    Attributes:
        on_violation: What a blocked image of the current user turn means.
        can_route: Whether there is a model for bodies whose severest action is ``route``; they are blocked otherwise.
        placement: Where the model wants the prefix.
    """

    on_violation: OnViolation = "refuse"
    can_route: bool = False
    placement: Placement = "system"


DEFAULT_RULES: Final = BodyRules()

_ROLES: Final[Mapping[Placement, tuple[str, ...]]] = {"system": ("system", "developer"), "user": ("user",)}


@dataclass(frozen=True)
class ScreenedBody:
    """What became of one body.

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
        rules: What becomes of it.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile.
    """
    parts = parts_of(body, form)
    turns = [part.turn() for part in parts]
    return _close(guard.policy, body, form, parts, turns, core.screen(guard, turns), rules)


async def ascreen_body(guard: Guard, body: Body, form: Form, rules: BodyRules = DEFAULT_RULES) -> ScreenedBody:
    """`screen_body` without blocking the event loop."""
    parts = parts_of(body, form)
    turns = [part.turn() for part in parts]
    return _close(guard.policy, body, form, parts, turns, await core.ascreen(guard, turns), rules)


def with_prefix(body: Body, form: Form, prefix: str, placement: Placement = "system") -> Body:
    """A body with the safety prefix, once; itself if it is there, or if the form has no place for it.

    With ``system`` it goes to the head of the app's own instructions, which are made if there are none; with ``user``
    to the head of the first message of the user. Bodies within the body that bring instructions or messages of their
    own, which replace those around them, are given it as well.
    """
    prefix = prefix.strip()
    if not prefix or form == "other":
        return body
    new = _prefixed(body, form, prefix, placement, is_whole=True)
    for path in nested_bodies(new):
        inner = block_at(new, path)
        if (headed_inner := _prefixed(inner, form, prefix, placement, is_whole=False)) is not inner:
            new = with_blocks(new, {path: headed_inner})
    return new


def _close(
    policy: Policy,
    body: Body,
    form: Form,
    parts: Sequence[Part],
    turns: Sequence[Turn],
    screened: Sequence[Screened],
    rules: BodyRules,
) -> ScreenedBody:
    is_chat = form != "other"
    decision = decide_chat(
        policy,
        [part.role for part in parts],
        [result.verdicts for result in screened],
        on_violation=rules.on_violation if is_chat else "raise",
        can_route=rules.can_route and is_chat,
    )
    changed = {
        part.path: part.screened(result.content)
        for part, turn, result in zip(parts, turns, screened, strict=True)
        if result.content is not turn.content
    }
    new: Body = with_blocks(body, changed)
    if decision.is_prefix_due:
        new = with_prefix(new, form, policy.prefix, rules.placement)
    return ScreenedBody(new, tuple(verdict for result in screened for verdict in result.verdicts), decision)


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
