"""Runs a runnable by all of its public methods, with a check and a decision in front.

The chosen target gets the sanitised input, the config and the arguments as they came, within the run of a
`DecidedCall`. The check comes before that run, so that no trace shows what was taken out. The subclass decides.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Final, Literal, cast

from langchain_core.runnables import RunnableConfig, get_config_list
from langchain_core.runnables.utils import gather_with_concurrency

from guardalign_guardrails import GuardAlignError
from langchain_guardalign.chat.decided_call import DecidedCall
from langchain_guardalign.chat.delegation import Delegation, by_target
from langchain_guardalign.derived import GuardKeeping
from langchain_guardalign.events import EVENT, Configs, adispatch, dispatch
from langchain_guardalign.screening import ModelInput, ascreen, read_input, screen

_FILTERS: Final = (
    "include_names",
    "include_types",
    "include_tags",
    "exclude_names",
    "exclude_types",
    "exclude_tags",
)

_Configs = Sequence[RunnableConfig | None]
Version = Literal["v1", "v2", "v3"]


class ScreenedRunnable(GuardKeeping):
    """To be put before a LangChain base class: overrides all that runs, and leaves the rest to that class.

    What LangChain derives from these methods (``batch_as_completed``, ``transform``, ``astream_log``) is screened
    through them; what it derives from the runnable (bindings, retries, fallbacks) see `GuardKeeping`.
    """

    @abstractmethod
    def _screen(self, screening: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        """Call `screen` or `ascreen` with the settings of this runnable."""

    @abstractmethod
    def _delegate(
        self, screened: ModelInput, arguments: dict[str, Any], config: RunnableConfig | None = None
    ) -> Delegation:
        """Decide on one screened input."""

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Screen, then invoke what was chosen."""
        (chosen,) = self._delegations([input], [config], kwargs)
        return self._call(chosen).invoke(chosen.shown, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """`invoke` without blocking the event loop."""
        (chosen,) = await self._adelegations([input], [config], kwargs)
        return await self._call(chosen).ainvoke(chosen.shown, config)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Screen, then stream what the chosen target streams, as it comes."""
        (chosen,) = self._delegations([input], [config], kwargs)
        yield from self._call(chosen).stream(chosen.shown, config)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """`stream` without blocking the event loop."""
        (chosen,) = await self._adelegations([input], [config], kwargs)
        chunks = self._call(chosen).astream(chosen.shown, config)
        async with aclosing(cast("Any", chunks)):
            async for chunk in chunks:
                yield chunk

    def batch(
        self, inputs: list[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """Screen all inputs in one batch, then run the batch of each chosen target."""
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))
        delegations = self._delegations(inputs, configs, kwargs)

        def run(_: list[Any], config: list[RunnableConfig]) -> list[Any]:
            outputs = _errors(delegations, return_exceptions=return_exceptions)
            for batch in by_target(delegations):
                own = [config[place] for place in batch.places]
                results = batch.target.batch(batch.inputs, own, return_exceptions=True, **batch.arguments)
                _put(outputs, batch.places, results)
            return outputs

        shown = [each.shown for each in delegations]
        return self._batch_with_config(cast("Any", run), shown, configs, return_exceptions=return_exceptions)

    async def abatch(
        self, inputs: list[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """`batch` without blocking the event loop; the targets run at the same time if no limit is set."""
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))
        delegations = await self._adelegations(inputs, configs, kwargs)

        async def run(_: list[Any], config: list[RunnableConfig]) -> list[Any]:
            outputs = _errors(delegations, return_exceptions=return_exceptions)
            batches = by_target(delegations)
            runs = [
                batch.target.abatch(
                    batch.inputs, [config[place] for place in batch.places], return_exceptions=True, **batch.arguments
                )
                for batch in batches
            ]
            # Each batch keeps to the limit by itself; two at once would double it.
            at_once = 1 if config[0].get("max_concurrency") else None
            for batch, results in zip(batches, await gather_with_concurrency(at_once, *runs), strict=True):
                _put(outputs, batch.places, results)
            return outputs

        shown = [each.shown for each in delegations]
        return await self._abatch_with_config(cast("Any", run), shown, configs, return_exceptions=return_exceptions)

    def stream_events(
        self, input: Any, config: RunnableConfig | None = None, *, version: Version = "v2", **kwargs: Any
    ) -> Any:
        """Screen now, then return what the chosen target returns (LangChain implements ``v3`` only)."""
        if version != "v3":
            return super().stream_events(input, config, version=version, **kwargs)
        (chosen,) = self._delegations([input], [config], kwargs)
        return self._call(chosen).typed_stream(config)

    def astream_events(
        self, input: Any, config: RunnableConfig | None = None, *, version: Version = "v2", **kwargs: Any
    ) -> Any:
        """Screen, then stream the events of the run; with ``v2`` the verdict comes first, as a custom event.

        Returns:
            An async iterator of events, for ``v3`` an awaitable of a stream.
        """
        if version == "v3":
            return self._astream_events_v3(input, config, kwargs)
        return self._astream_events(input, config, version, kwargs)

    async def _astream_events_v3(self, value: Any, config: Any, kwargs: dict[str, Any]) -> Any:
        (chosen,) = await self._adelegations([value], [config], kwargs)
        return await self._call(chosen).atyped_stream(config)

    async def _astream_events(
        self, value: Any, config: Any, version: Literal["v1", "v2"], kwargs: dict[str, Any]
    ) -> AsyncIterator[Any]:
        filters: dict[str, Any] = {name: kwargs.pop(name) for name in _FILTERS if name in kwargs}
        (chosen,) = await self._ascreened([value], [config], kwargs)
        event = await adispatch(chosen.verdicts, config)
        # LangChain would put the input into the first event of a run; this one belongs to no run of ours.
        if event and version == "v2" and _is_wanted(filters):
            yield event
        events = self._call(chosen).astream_events(chosen.shown, config, version=version, **filters)
        async with aclosing(cast("Any", events)):
            async for event in events:
                yield event

    def _call(self, chosen: Delegation) -> DecidedCall:
        return DecidedCall(self.get_name(), chosen)

    def _delegations(self, inputs: Sequence[Any], configs: _Configs, arguments: dict[str, Any]) -> list[Delegation]:
        """Check inputs in one batch, decide on each, and dispatch the verdicts. What cannot be checked is an error."""
        try:
            screened = self._screen(screen, inputs)
        except GuardAlignError as error:
            return [_unchecked(value, error) for value in inputs]
        delegations = self._decided(screened, arguments, configs)
        for each, config in zip(delegations, configs, strict=True):
            dispatch(each.verdicts, config)
        return delegations

    async def _adelegations(
        self, inputs: Sequence[Any], configs: _Configs, arguments: dict[str, Any]
    ) -> list[Delegation]:
        """`_delegations` without blocking the event loop."""
        delegations = await self._ascreened(inputs, configs, arguments)
        for each, config in zip(delegations, configs, strict=True):
            await adispatch(each.verdicts, config)
        return delegations

    async def _ascreened(self, inputs: Sequence[Any], configs: _Configs, arguments: dict[str, Any]) -> list[Delegation]:
        try:
            screened = await self._screen(ascreen, inputs)
        except GuardAlignError as error:
            return [_unchecked(value, error) for value in inputs]
        return self._decided(screened, arguments, configs)

    def _decided(
        self, screened: Sequence[ModelInput], arguments: dict[str, Any], configs: _Configs
    ) -> list[Delegation]:
        return [
            self._delegate(one, arguments, config) if one.error is None else _unread(one, one.error)
            for one, config in zip(screened, configs, strict=True)
        ]


def _unread(read: ModelInput, error: Exception) -> Delegation:
    return Delegation("error", (), read.value, read.without_images(), error)


def _unchecked(value: Any, error: GuardAlignError) -> Delegation:
    read = read_input(value)
    return _unread(read, read.error or error)


def _is_wanted(filters: dict[str, Any]) -> bool:
    """Whether the verdict's event passes the filters of `astream_events`, for which its type is its name."""
    if EVENT in (filters.get("exclude_names") or ()) or EVENT in (filters.get("exclude_types") or ()):
        return False
    included = [filters.get(name) for name in _FILTERS[:3]]
    return not any(included) or any(EVENT in names for names in included if names)


def _errors(delegations: Sequence[Delegation], *, return_exceptions: bool) -> list[Any]:
    """The errors of delegations without a target, None for the others; the first is raised if errors may be."""
    errors = [each.target if isinstance(each.target, Exception) else None for each in delegations]
    if not return_exceptions:
        for error in errors:
            if error is not None:
                raise error
    return list(errors)


def _put(outputs: list[Any], places: Sequence[int], results: Sequence[Any]) -> None:
    for place, result in zip(places, results, strict=True):
        outputs[place] = result
