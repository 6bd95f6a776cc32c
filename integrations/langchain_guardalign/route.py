"""Sends an input to one of two runnables by what a guard finds in it, checking once.

`RunnableBranch` would run the guard as a condition and again to sanitise; here one report decides and is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.base import RunnableLike, coerce_to_runnable
from pydantic import ConfigDict
from typing_extensions import Self

from guardalign_guardrails.content.chat import first_violation
from langchain_guardalign.events import aannounce, announce
from langchain_guardalign.runnable import ImageGuard
from langchain_guardalign.screening import GuardReport, without_images

Branch = Runnable[LanguageModelInput, Any]


class GuardedRoute(RunnableSerializable[LanguageModelInput, Any]):
    """See `ImageGuard.route`, which makes it.

    Attributes:
        guard: Checks and sanitises. Its ``on_violation`` does not count here: a blocked input is routed.
        safe: Gets inputs whose severest action is milder than ``route``.
        unsafe: Gets the others.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    guard: ImageGuard
    safe: Branch
    unsafe: Branch

    @classmethod
    def of(
        cls,
        guard: ImageGuard,
        safe: RunnableLike[LanguageModelInput, Any],
        unsafe: RunnableLike[LanguageModelInput, Any],
    ) -> Self:
        """A route between anything that can be made a runnable."""
        return cls(guard=guard, safe=coerce_to_runnable(safe), unsafe=coerce_to_runnable(unsafe))

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Check, choose, and invoke the chosen runnable with ``kwargs``."""

        def run(_: Any, run_manager: Any, config: RunnableConfig) -> Any:
            report = self.guard.inspect(input)
            announce(report, config)
            return self._branch(report).invoke(report.output, config, **kwargs)

        return self._call_with_config(run, without_images(input), config)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """`invoke` without blocking the event loop."""

        async def run(_: Any, run_manager: Any, config: RunnableConfig) -> Any:
            report = await self.guard.ainspect(input)
            await aannounce(report, config)
            return await self._branch(report).ainvoke(report.output, config, **kwargs)

        return await self._acall_with_config(run, without_images(input), config)

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Check, choose, and stream what the chosen runnable streams."""

        def run(_: Iterator[Any], run_manager: Any, config: RunnableConfig) -> Iterator[Any]:
            report = self.guard.inspect(input)
            announce(report, config)
            yield from self._branch(report).stream(report.output, config, **kwargs)

        yield from self._transform_stream_with_config(iter([without_images(input)]), run, config)

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """`stream` without blocking the event loop."""

        async def traced() -> AsyncIterator[Any]:
            yield without_images(input)

        async def run(_: AsyncIterator[Any], run_manager: Any, config: RunnableConfig) -> AsyncIterator[Any]:
            report = await self.guard.ainspect(input)
            await aannounce(report, config)
            async for chunk in self._branch(report).astream(report.output, config, **kwargs):
                yield chunk

        async for chunk in self._atransform_stream_with_config(traced(), run, config):
            yield chunk

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Check all inputs in one batch, then run the batch of each of the two runnables."""

        def run(_: Any, run_manager: Any, config: list[RunnableConfig]) -> list[Any]:
            reports = self.guard.inspect_batch(inputs)
            for report, own in zip(reports, config, strict=True):
                announce(report, own)
            outputs: list[Any] = list(reports)
            for branch, places in self._shares(reports):
                results = branch.batch(*_share(reports, config, places), return_exceptions=True, **kwargs)
                _put(outputs, places, results)
            return outputs

        traced = [without_images(value) for value in inputs]
        return self._batch_with_config(run, traced, config, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """`batch` without blocking the event loop; the two runnables run at the same time."""

        async def run(_: Any, run_manager: Any, config: list[RunnableConfig]) -> list[Any]:
            reports = await self.guard.ainspect_batch(inputs)
            for report, own in zip(reports, config, strict=True):
                await aannounce(report, own)
            outputs: list[Any] = list(reports)
            shares = self._shares(reports)
            answers = await asyncio.gather(
                *(
                    branch.abatch(*_share(reports, config, places), return_exceptions=True, **kwargs)
                    for branch, places in shares
                )
            )
            for (_, places), results in zip(shares, answers, strict=True):
                _put(outputs, places, results)
            return outputs

        traced = [without_images(value) for value in inputs]
        return await self._abatch_with_config(run, traced, config, return_exceptions=return_exceptions)

    def _branch(self, report: GuardReport) -> Branch:
        return self.safe if first_violation(report.verdicts) is None else self.unsafe

    def _shares(self, reports: Sequence[GuardReport | Exception]) -> list[tuple[Branch, list[int]]]:
        """Which inputs go where; unreadable ones go nowhere."""
        safe: list[int] = []
        unsafe: list[int] = []
        for place, report in enumerate(reports):
            if isinstance(report, GuardReport):
                (safe if first_violation(report.verdicts) is None else unsafe).append(place)
        return [(branch, places) for branch, places in ((self.safe, safe), (self.unsafe, unsafe)) if places]


def _share(
    reports: Sequence[GuardReport | Exception], config: Sequence[RunnableConfig], places: Sequence[int]
) -> tuple[list[LanguageModelInput], list[RunnableConfig]]:
    chosen = (reports[place] for place in places)
    return [report.output for report in chosen if isinstance(report, GuardReport)], [config[p] for p in places]


def _put(outputs: list[Any], places: Sequence[int], results: Sequence[Any]) -> None:
    for place, result in zip(places, results, strict=True):
        outputs[place] = result
