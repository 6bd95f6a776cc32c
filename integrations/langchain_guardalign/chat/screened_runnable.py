"""Screen, choose, delegate: every public way to run a runnable, with a decision in front of it.

The chosen target gets the sanitised input, the config and the arguments as they came, and opens the only run there is:
nothing above it is traced, so no trace shows what was taken out. What decides is the subclass's part.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast
from uuid import UUID, uuid4

from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config, get_config_list
from langchain_core.runnables.config import get_async_callback_manager_for_config, get_callback_manager_for_config
from langchain_core.runnables.utils import gather_with_concurrency

from guardalign_guardrails import GuardAlignError, Verdict
from guardalign_guardrails.verdict import event_of
from langchain_guardalign.events import EVENT

_FILTERS: Final = (
    "include_names",
    "include_types",
    "include_tags",
    "exclude_names",
    "exclude_types",
    "exclude_tags",
)


@dataclass(frozen=True)
class Passage:
    """Where one input goes, and as what.

    Attributes:
        verdicts: What was found in it.
        input: It, sanitised.
        target: What is to run, or the error to raise instead.
        arguments: Keyword arguments for the target.
    """

    verdicts: tuple[Verdict, ...]
    input: LanguageModelInput = field(repr=False)
    target: Runnable[LanguageModelInput, Any] | Exception = field(repr=False)
    arguments: dict[str, Any] = field(repr=False)

    def enter(self) -> Runnable[LanguageModelInput, Any]:
        """The target, or its error raised."""
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


class ScreenedRunnable(Runnable[LanguageModelInput, Any]):
    """To be put before a LangChain base class: overrides all that runs, and leaves the rest to that class.

    What LangChain derives from these methods (``batch_as_completed``, ``transform``, ``astream_log``, bindings,
    retries) is screened through them.
    """

    @abstractmethod
    def _passages(self, inputs: Sequence[LanguageModelInput], arguments: dict[str, Any]) -> list[Passage]:
        """Check inputs in one batch and decide on each. Raises `GuardAlignError` if nothing can be checked."""

    @abstractmethod
    async def _apassages(self, inputs: Sequence[LanguageModelInput], arguments: dict[str, Any]) -> list[Passage]:
        """`_passages` without blocking the event loop."""

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Screen, then invoke what was chosen."""
        passage = self._passage(input, config, kwargs)
        return passage.enter().invoke(passage.input, config, **passage.arguments)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """`invoke` without blocking the event loop."""
        passage = await self._apassage(input, config, kwargs)
        return await passage.enter().ainvoke(passage.input, config, **passage.arguments)

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Screen, then stream what the chosen target streams, as it comes."""
        passage = self._passage(input, config, kwargs)
        yield from passage.enter().stream(passage.input, config, **passage.arguments)

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """`stream` without blocking the event loop."""
        passage = await self._apassage(input, config, kwargs)
        chunks = passage.enter().astream(passage.input, config, **passage.arguments)
        # Closed with this generator, so that a reader who stops early ends the request too.
        async with aclosing(cast("Any", chunks)):
            async for chunk in chunks:
                yield chunk

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Screen all inputs in one batch, then run the batch of each chosen target."""
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))
        try:
            passages = self._announced(inputs, configs, kwargs)
        except GuardAlignError as error:
            return _failed(error, len(inputs), return_exceptions=return_exceptions)
        outputs = _errors(passages, return_exceptions=return_exceptions)
        for places in _shares(passages):
            share, arguments = _share(passages, configs, places)
            target = passages[places[0]].enter()
            results = target.batch(*share, return_exceptions=return_exceptions, **arguments)
            _put(outputs, places, results)
        return outputs

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """`batch` without blocking the event loop; the targets run at the same time if no limit is set."""
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))
        try:
            passages = await self._aannounced(inputs, configs, kwargs)
        except GuardAlignError as error:
            return _failed(error, len(inputs), return_exceptions=return_exceptions)
        outputs = _errors(passages, return_exceptions=return_exceptions)
        runs = []
        for places in _shares(passages):
            share, arguments = _share(passages, configs, places)
            target = passages[places[0]].enter()
            runs.append(target.abatch(*share, return_exceptions=return_exceptions, **arguments))
        # Each batch keeps to the limit by itself; two at once would double it.
        at_once = 1 if configs[0].get("max_concurrency") else None
        for places, results in zip(_shares(passages), await gather_with_concurrency(at_once, *runs), strict=True):
            _put(outputs, places, results)
        return outputs

    def stream_events(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        *,
        version: Literal["v1", "v2", "v3"] = "v2",
        **kwargs: Any,
    ) -> Any:
        """Screen now, then return what the chosen target returns (LangChain implements ``v3`` only)."""
        passage = self._passage(input, config, kwargs)
        target: Any = passage.enter()
        return target.stream_events(passage.input, config, version=version, **passage.arguments)

    def astream_events(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        *,
        version: Literal["v1", "v2", "v3"] = "v2",
        **kwargs: Any,
    ) -> Any:
        """Screen, then stream the chosen target's events; with ``v2`` the verdict comes first, as a custom event.

        Returns:
            An async iterator of events, for ``v3`` an awaitable of a stream.
        """
        if version == "v3":
            return self._astream_events_v3(input, config, kwargs)
        return self._astream_events(input, config, version, kwargs)

    async def _astream_events_v3(self, value: LanguageModelInput, config: Any, kwargs: dict[str, Any]) -> Any:
        passage = await self._apassage(value, config, kwargs)
        target: Any = passage.enter()
        return await target.astream_events(passage.input, config, version="v3", **passage.arguments)

    async def _astream_events(
        self, value: LanguageModelInput, config: Any, version: Literal["v1", "v2"], kwargs: dict[str, Any]
    ) -> AsyncIterator[Any]:
        filters: dict[str, Any] = {name: kwargs.pop(name) for name in _FILTERS if name in kwargs}
        (passage,) = await self._apassages([value], kwargs)
        told = await _aannounce(passage, config)
        # LangChain would put the input into the first event of a run; this one belongs to no run of ours.
        if told and version == "v2" and _is_wanted(filters):
            yield told
        events = passage.enter().astream_events(passage.input, config, version=version, **filters, **passage.arguments)
        async with aclosing(cast("Any", events)):
            async for event in events:
                yield event

    def _passage(self, value: LanguageModelInput, config: RunnableConfig | None, kwargs: dict[str, Any]) -> Passage:
        return self._announced([value], [ensure_config(config)], kwargs)[0]

    async def _apassage(
        self, value: LanguageModelInput, config: RunnableConfig | None, kwargs: dict[str, Any]
    ) -> Passage:
        return (await self._aannounced([value], [ensure_config(config)], kwargs))[0]

    def _announced(
        self, inputs: Sequence[LanguageModelInput], configs: Sequence[RunnableConfig], kwargs: dict[str, Any]
    ) -> list[Passage]:
        passages = self._passages(inputs, kwargs)
        for passage, config in zip(passages, configs, strict=True):
            _announce(passage, config)
        return passages

    async def _aannounced(
        self, inputs: Sequence[LanguageModelInput], configs: Sequence[RunnableConfig], kwargs: dict[str, Any]
    ) -> list[Passage]:
        passages = await self._apassages(inputs, kwargs)
        for passage, config in zip(passages, configs, strict=True):
            await _aannounce(passage, config)
        return passages


def _announce(passage: Passage, config: RunnableConfig) -> None:
    """Tell listeners what was found; within the enclosing run if there is one, which `dispatch_custom_event` needs."""
    if passage.verdicts:
        manager = get_callback_manager_for_config(config)
        manager.on_custom_event(EVENT, event_of(passage.verdicts), run_id=manager.parent_run_id)


async def _aannounce(passage: Passage, config: RunnableConfig | None) -> dict[str, Any] | None:
    """`_announce` for async runs; the event as `astream_events` shows it, None if there is nothing to tell."""
    if not passage.verdicts:
        return None
    manager = get_async_callback_manager_for_config(ensure_config(config))
    run_id: UUID = manager.parent_run_id or uuid4()
    data = event_of(passage.verdicts)
    await manager.on_custom_event(EVENT, data, run_id=run_id)
    return {
        "event": "on_custom_event",
        "name": EVENT,
        "run_id": str(run_id),
        "parent_ids": [],
        "tags": list(manager.tags),
        "metadata": dict(manager.metadata),
        "data": data,
    }


def _is_wanted(filters: dict[str, Any]) -> bool:
    """Whether the verdict's event passes the filters of `astream_events`, for which its type is its name."""
    if EVENT in (filters.get("exclude_names") or ()) or EVENT in (filters.get("exclude_types") or ()):
        return False
    included = [filters.get(name) for name in _FILTERS[:3]]
    return not any(included) or any(EVENT in names for names in included if names)


def _failed(error: GuardAlignError, count: int, *, return_exceptions: bool) -> list[Any]:
    if not return_exceptions:
        raise error
    return [error] * count


def _errors(passages: Sequence[Passage], *, return_exceptions: bool) -> list[Any]:
    """A result for each passage that has no target, None for the others; the first error raised if they may be."""
    errors = [passage.target if isinstance(passage.target, Exception) else None for passage in passages]
    if not return_exceptions:
        for error in errors:
            if error is not None:
                raise error
    return list(errors)


def _shares(passages: Sequence[Passage]) -> list[list[int]]:
    """Which inputs go to the same target; those with an error go nowhere."""
    shares: dict[int, list[int]] = {}
    for place, passage in enumerate(passages):
        if not isinstance(passage.target, Exception):
            shares.setdefault(id(passage.target), []).append(place)
    return list(shares.values())


def _share(
    passages: Sequence[Passage], configs: Sequence[RunnableConfig], places: Sequence[int]
) -> tuple[tuple[list[LanguageModelInput], list[RunnableConfig]], dict[str, Any]]:
    share = [passages[place].input for place in places], [configs[place] for place in places]
    return share, passages[places[0]].arguments


def _put(outputs: list[Any], places: Sequence[int], results: Sequence[Any]) -> None:
    for place, result in zip(places, results, strict=True):
        outputs[place] = result
