"""Requests to hosted models as plain data: bodies in, sanitised bodies and a decision out."""

from guardalign_guardrails.content.bodies.parts import Body, Form
from guardalign_guardrails.content.bodies.prefix import with_prefix
from guardalign_guardrails.content.bodies.screening import BodyRules, ScreenedBody, ascreen_body, screen_body

__all__ = ["Body", "BodyRules", "Form", "ScreenedBody", "ascreen_body", "screen_body", "with_prefix"]
