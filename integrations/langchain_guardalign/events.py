"""Tells whoever listens what a guard found: the ``guardalign.verdict`` custom event, one per checked input."""

from __future__ import annotations

from typing import Final

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.runnables import RunnableConfig

from langchain_guardalign.screening import GuardReport

EVENT: Final = "guardalign.verdict"


def announce(report: GuardReport | Exception, config: RunnableConfig) -> None:
    """Dispatch a report's event within the run that ``config`` belongs to; nothing without an image or a report."""
    if isinstance(report, GuardReport) and report.verdicts:
        dispatch_custom_event(EVENT, report.event(), config=config)


async def aannounce(report: GuardReport | Exception, config: RunnableConfig) -> None:
    """`announce` for async runs."""
    if isinstance(report, GuardReport) and report.verdicts:
        await adispatch_custom_event(EVENT, report.event(), config=config)
