"""Puts the safety prefix into a body, where the API and the model want it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from guardalign_guardrails.content.bodies.parts import Body, Form, nested_bodies
from guardalign_guardrails.content.chat import Placement, PlacementSetting, headed, placement_for
from guardalign_guardrails.content.rewrite import block_at, with_blocks

_ROLES: Final[Mapping[Placement, tuple[str, ...]]] = {"system": ("system", "developer"), "user": ("user",)}


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


def content_for_prefix(messages: object, placement: Placement) -> Any:
    """The content of the message at whose head the prefix stands in a chat; None if there is no such message."""
    listed = messages if isinstance(messages, list | tuple) else ()
    own = (each for each in listed if isinstance(each, Mapping) and each.get("role") in _ROLES[placement])
    first = next(own, None)
    return None if first is None else first.get("content")


def _model_of(body: Body) -> str | None:
    model = body.get("model")
    return model if isinstance(model, str) else None


def _prefixed(body: Body, form: Form, prefix: str, placement: Placement, *, is_whole: bool) -> Body:
    if form == "chat":
        return _headed_message(body, "messages", prefix, placement)
    if form == "messages":
        if placement == "user":
            return _headed_message(body, "messages", prefix, placement)
        return _headed_text(body, "system", prefix) if is_whole or "system" in body else body
    if placement == "system":
        if _is_headed(body.get("input"), prefix, placement):
            return body
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


def _is_headed(messages: object, prefix: str, placement: Placement) -> bool:
    """Whether the first message of a role begins with the prefix: an app may keep it there instead of instructions."""
    content = content_for_prefix(messages, placement)
    return content is not None and headed(content, prefix) is content


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
