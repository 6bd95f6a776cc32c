"""``python -m guardalign_guardrails.cli``, for where the entry point is not on the path."""

from __future__ import annotations

from guardalign_guardrails.cli.app import main

main()
