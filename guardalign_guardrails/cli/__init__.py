"""The ``guardalign`` command. Nothing here imports torch until an image has to be checked."""

from __future__ import annotations

from guardalign_guardrails.cli.app import app, main

__all__ = ["app", "main"]
