"""Sends an input to one of two runnables by what a guard finds in it, checking once.

`RunnableBranch` would run the guard as a condition and again to sanitise; here one check decides and is used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable, get_config_list
from pydantic import ConfigDict

from guardalign_guardrails.content.chat import Placement, first_violation
from langchain_guardalign.artifacts import Artifacts
from langchain_guardalign.chat.delegation import Delegation
from langchain_guardalign.chat.screened_runnable import ScreenedRunnable
from langchain_guardalign.component import GuardedComponent
from langchain_guardalign.events import Configs, traced_input
from langchain_guardalign.screening import ModelInput, output_of, read_input

Branch = Runnable[LanguageModelInput, Any]


class GuardedRoute(ScreenedRunnable, GuardedComponent, RunnableSerializable[LanguageModelInput, Any]):
    """See `ImageGuard.route`, which makes it.

    It has a run of its own, whose trace holds no image, around that of the chosen runnable.

    Attributes:
        guard: Checks.
        artifacts: As of the `ImageGuard`.
        placement: As of the `ImageGuard`.
        safe: Gets inputs whose severest action is milder than ``route``.
        unsafe: Gets the others.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    artifacts: Artifacts = "mcp"
    placement: Placement = "system"
    safe: Branch
    unsafe: Branch

    # LangChain's own, which show the run of the route.
    stream_events = Runnable.stream_events  # type: ignore[assignment]
    astream_events = Runnable.astream_events  # type: ignore[assignment]

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """False, as it ever was."""
        return False

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Check, choose, and invoke the chosen runnable with ``kwargs``."""
        read = self._read(input)

        def run(_: Any, run_manager: Any, config: RunnableConfig) -> Any:
            return ScreenedRunnable.invoke(self, read, config, **kwargs)

        return self._call_with_config(run, traced_input(read, config), config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """`invoke` without blocking the event loop."""
        read = self._read(input)

        async def run(_: Any, run_manager: Any, config: RunnableConfig) -> Any:
            return await ScreenedRunnable.ainvoke(self, read, config, **kwargs)

        return await self._acall_with_config(run, traced_input(read, config), config)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Check, choose, and stream what the chosen runnable streams."""
        read = self._read(input)

        def run(_: Iterator[Any], run_manager: Any, config: RunnableConfig) -> Iterator[Any]:
            return ScreenedRunnable.stream(self, read, config, **kwargs)

        yield from self._transform_stream_with_config(iter([traced_input(read, config)]), run, config)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """`stream` without blocking the event loop."""
        read = self._read(input)

        async def traced() -> AsyncIterator[Any]:
            yield traced_input(read, config)

        def run(_: AsyncIterator[Any], run_manager: Any, config: RunnableConfig) -> AsyncIterator[Any]:
            return ScreenedRunnable.astream(self, read, config, **kwargs)

        async for chunk in self._atransform_stream_with_config(traced(), run, config):
            yield chunk

    def batch(
        self, inputs: list[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """Check all inputs in one batch, then run the batch of each of the two runnables."""
        if not inputs:
            return []
        configs, read = get_config_list(config, len(inputs)), list(map(self._read, inputs))

        def run(_: Any, run_manager: Any, config: list[RunnableConfig]) -> list[Any]:
            return ScreenedRunnable.batch(self, read, config, return_exceptions=True, **kwargs)

        traced = list(map(traced_input, read, configs))
        return self._batch_with_config(run, traced, configs, return_exceptions=return_exceptions)

    async def abatch(
        self, inputs: list[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """`batch` without blocking the event loop; the two runnables run at the same time."""
        if not inputs:
            return []
        configs, read = get_config_list(config, len(inputs)), list(map(self._read, inputs))

        async def run(_: Any, run_manager: Any, config: list[RunnableConfig]) -> list[Any]:
            return await ScreenedRunnable.abatch(self, read, config, return_exceptions=True, **kwargs)

        traced = list(map(traced_input, read, configs))
        return await self._abatch_with_config(run, traced, configs, return_exceptions=return_exceptions)

    def _screen(self, screening: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        return screening(self.guard.guard, inputs, artifacts=self.artifacts, on_violation="notice")

    def _read(self, value: Any) -> ModelInput:
        return read_input(value, artifacts=self.artifacts)

    def _delegate(self, screened: ModelInput, arguments: dict[str, Any]) -> Delegation:
        output = output_of(self.guard.policy, screened, self.placement)
        if first_violation(screened.verdicts) is None:
            return Delegation("model", screened.verdicts, output, self.safe, arguments)
        return Delegation("route", screened.verdicts, output, self.unsafe, arguments)
