"""What LangChain derives from a guarded runnable, with the guard still in front of all of it.

LangChain's own fallbacks get the input as it came: an error of the guard, or of the model, would hand it to a runnable
that nobody guards. Its retries try a violation again, which stays one. Here the guard stays in front, once, and retries
and fallbacks are put around what is behind it. What sets an alternative beside a guarded runnable puts it behind the
same guard. A chain that does not begin with it (``prompt | guarded``) is LangChain's, which gives no hold on it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from langchain_core.runnables import Runnable, RunnableBinding, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.base import coerce_to_runnable
from langchain_core.runnables.configurable import RunnableConfigurableAlternatives, RunnableConfigurableFields
from langchain_core.runnables.utils import ConfigurableField

Change = Callable[[Runnable[Any, Any]], Runnable[Any, Any]]
Kept = TypeVar("Kept", bound="GuardKeeping")


class GuardKeeping(Runnable[Any, Any]):
    """To be put before a LangChain base class: what is derived from it by method keeps the guard in front."""

    @abstractmethod
    def behind_guard(self, change: Change, arguments: Mapping[str, Any]) -> Runnable[Any, Any]:
        """A copy with other runnables behind the guard.

        Args:
            change: Makes each of them of the one that is there.
            arguments: What a call would give those that are there; bound to them first.
        """

    def with_retry(self, **settings: Any) -> Runnable[Any, Any]:
        """Retry what is behind the guard; the guard checks once, and what it raises is not retried.

        Args:
            **settings: LangChain's.
        """
        return self.behind_guard(lambda runnable: runnable.with_retry(**settings), {})

    def with_fallbacks(self, fallbacks: Sequence[Runnable[Any, Any]], **settings: Any) -> Any:
        """Fall back behind the guard: all fallbacks get what it lets pass, and what it raises is raised.

        Args:
            fallbacks: Runnables to ask if the one before fails.
            **settings: LangChain's.
        """
        return self.falling_back(fallbacks, settings, {})

    def falling_back(
        self, fallbacks: Sequence[Runnable[Any, Any]], settings: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> Runnable[Any, Any]:
        """`with_fallbacks`, with arguments that are bound to what is there and mean nothing to the fallbacks."""
        return self.behind_guard(lambda runnable: runnable.with_fallbacks(fallbacks, **settings), arguments)

    def guarding(self, other: Any) -> Any:
        """Another runnable, or what makes one, behind the same guard; itself if it has one."""
        if isinstance(other, GuardKeeping):
            return other
        if not isinstance(other, Runnable) and callable(other):
            return partial(_made, self, other)
        return self.behind_guard(lambda _: coerce_to_runnable(other), {})

    @property
    def is_step(self) -> bool:
        """Whether it passes its input on, sanitised, for the next step of a chain; else it answers by itself."""
        return False

    def __or__(self, other: Any) -> Any:
        """LangChain's, with the guard kept."""
        return GuardedSequence.of(super().__or__(other))

    def pipe(self, *others: Any, name: str | None = None) -> Any:
        """LangChain's, with the guard kept."""
        return GuardedSequence.of(super().pipe(*others), name)

    def bind(self, **kwargs: Any) -> Runnable[Any, Any]:
        """LangChain's, with the guard kept."""
        return _kept(super().bind(**kwargs))

    def with_config(self, config: Any = None, **kwargs: Any) -> Runnable[Any, Any]:
        """LangChain's, with the guard kept."""
        return _kept(super().with_config(config, **kwargs))

    def with_listeners(self, **listeners: Any) -> Runnable[Any, Any]:
        """LangChain's, with the guard kept."""
        return _kept(super().with_listeners(**listeners))

    def with_alisteners(self, **listeners: Any) -> Runnable[Any, Any]:
        """LangChain's, with the guard kept."""
        return _kept(super().with_alisteners(**listeners))

    def with_types(self, **types: Any) -> Runnable[Any, Any]:
        """LangChain's, with the guard kept."""
        return _kept(super().with_types(**types))

    def configurable_fields(self, **fields: Any) -> Any:
        """LangChain's, with the guard kept."""
        made = cast("Any", super()).configurable_fields(**fields)
        return GuardedFields(default=made.default, fields=made.fields)

    def configurable_alternatives(self, which: ConfigurableField, **settings: Any) -> Any:
        """LangChain's, with each alternative behind the same guard.

        Args:
            which: The field of the config that chooses.
            **settings: ``default_key``, ``prefix_keys``, and the alternatives: runnables or what makes them.
        """
        made = cast("Any", super()).configurable_alternatives(which, **settings)
        others = {name: self.guarding(other) for name, other in made.alternatives.items()}
        names = ("which", "default", "default_key", "prefix_keys")
        return GuardedAlternatives(alternatives=others, **{name: getattr(made, name) for name in names})


class _Derived(GuardKeeping):
    """What is derived: dumps say where to find it."""

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where `langchain_core.load.load` finds the class."""
        return ["langchain_guardalign"]


class GuardedBinding(_Derived, RunnableBinding):  # type: ignore[type-arg]
    """A binding of a guarded runnable."""

    bind = RunnableBinding.bind
    with_config = RunnableBinding.with_config
    with_listeners = RunnableBinding.with_listeners  # type: ignore[assignment]
    with_types = RunnableBinding.with_types  # type: ignore[assignment]
    with_retry = RunnableBinding.with_retry

    def behind_guard(self, change: Change, arguments: Mapping[str, Any]) -> Runnable[Any, Any]:
        """What is bound, changed."""
        return self._rebound(self._guarded.behind_guard(change, {**self.kwargs, **arguments}))

    def falling_back(
        self, fallbacks: Sequence[Runnable[Any, Any]], settings: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> Runnable[Any, Any]:
        """What is bound, falling back."""
        return self._rebound(self._guarded.falling_back(fallbacks, settings, {**self.kwargs, **arguments}))

    def guarding(self, other: Any) -> Any:
        """As what is bound does."""
        return self._guarded.guarding(other)

    @property
    def is_step(self) -> bool:
        """As what is bound."""
        return self._guarded.is_step

    @property
    def _guarded(self) -> GuardKeeping:
        return cast("GuardKeeping", self.bound)

    def _rebound(self, runnable: Runnable[Any, Any]) -> Runnable[Any, Any]:
        return self.model_copy(update={"bound": runnable, "kwargs": {}})


class GuardedSequence(_Derived, RunnableSequence):  # type: ignore[type-arg]
    """A chain that begins with a guard, or with a guarded runnable."""

    @classmethod
    def of(cls, chain: Any, name: str | None = None) -> GuardedSequence:
        """A chain that LangChain made."""
        make: Any = cls
        return cast("GuardedSequence", make(*chain.steps, name=name))

    def get_name(self, suffix: str | None = None, *, name: str | None = None) -> str:
        """As LangChain's chain is called in traces."""
        return super().get_name(suffix, name=name or self.name or RunnableSequence.__name__)

    def behind_guard(self, change: Change, arguments: Mapping[str, Any]) -> Runnable[Any, Any]:
        """The chain with something else behind its guard: the rest of it, or what the guarded runnable asks."""
        first, *rest = self.steps
        if not self._first.is_step:
            return self._first.behind_guard(change, arguments).pipe(*rest)
        # Arguments of a call are the guard's, which ignores them.
        return cast("Runnable[Any, Any]", first | change(rest[0] if len(rest) == 1 else RunnableSequence(*rest)))

    def falling_back(
        self, fallbacks: Sequence[Runnable[Any, Any]], settings: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> Runnable[Any, Any]:
        """Behind the guard; where that answers by itself, the whole chain falls back to guarded fallbacks."""
        if self._first.is_step:
            return super().falling_back(fallbacks, settings, arguments)
        return _as_a_whole(self, fallbacks, settings, arguments)

    def guarding(self, other: Any) -> Any:
        """As the first step does; a guard goes in front."""
        return super().guarding(other) if self._first.is_step else self._first.guarding(other)

    @property
    def _first(self) -> GuardKeeping:
        return cast("GuardKeeping", self.first)


def _as_a_whole(
    guarded: GuardKeeping,
    fallbacks: Sequence[Runnable[Any, Any]],
    settings: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> Runnable[Any, Any]:
    """All of a runnable, falling back to others behind the same guard."""
    others = [guarded.guarding(fallback) for fallback in fallbacks]
    return GuardedFallbacks(runnable=with_arguments(guarded, arguments), fallbacks=others, **settings)


class GuardedFallbacks(_Derived, RunnableWithFallbacks):  # type: ignore[type-arg]
    """A chain that begins with a guarded runnable, and its fallbacks behind the same guard."""

    def behind_guard(self, change: Change, arguments: Mapping[str, Any]) -> Runnable[Any, Any]:
        """The same of each."""
        own = [cast("GuardKeeping", each).behind_guard(change, arguments) for each in self.runnables]
        return self.model_copy(update={"runnable": own[0], "fallbacks": own[1:]})

    def falling_back(
        self, fallbacks: Sequence[Runnable[Any, Any]], settings: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> Runnable[Any, Any]:
        """Fallbacks of these, guarded by the same guard."""
        return _as_a_whole(self, fallbacks, settings, arguments)

    def guarding(self, other: Any) -> Any:
        """As the chain does."""
        return cast("GuardKeeping", self.runnable).guarding(other)


class GuardedFields(_Derived, RunnableConfigurableFields):  # type: ignore[type-arg]
    """A guarded runnable with fields that are set per call."""

    with_config = RunnableConfigurableFields.with_config
    configurable_fields = RunnableConfigurableFields.configurable_fields

    def behind_guard(self, change: Change, arguments: Mapping[str, Any]) -> Runnable[Any, Any]:
        """The same of the runnable whose fields these are."""
        return self.model_copy(update={"default": self._guarded.behind_guard(change, arguments)})

    def falling_back(
        self, fallbacks: Sequence[Runnable[Any, Any]], settings: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> Runnable[Any, Any]:
        """The same of the runnable whose fields these are."""
        return self.model_copy(update={"default": self._guarded.falling_back(fallbacks, settings, arguments)})

    def guarding(self, other: Any) -> Any:
        """As the runnable does whose fields these are."""
        return self._guarded.guarding(other)

    @property
    def is_step(self) -> bool:
        """As the runnable whose fields these are."""
        return self._guarded.is_step

    @property
    def _guarded(self) -> GuardKeeping:
        return cast("GuardKeeping", self.default)


class GuardedAlternatives(_Derived, RunnableConfigurableAlternatives):  # type: ignore[type-arg]
    """Guarded runnables of which a call's config chooses one."""

    with_config = RunnableConfigurableAlternatives.with_config
    configurable_fields = RunnableConfigurableAlternatives.configurable_fields

    def behind_guard(self, change: Change, arguments: Mapping[str, Any]) -> Runnable[Any, Any]:
        """The same of each."""
        return self._each(lambda guarded: guarded.behind_guard(change, arguments))

    def falling_back(
        self, fallbacks: Sequence[Runnable[Any, Any]], settings: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> Runnable[Any, Any]:
        """The same of each."""
        return self._each(lambda guarded: guarded.falling_back(fallbacks, settings, arguments))

    @property
    def is_step(self) -> bool:
        """As the default."""
        return cast("GuardKeeping", self.default).is_step

    def guarding(self, other: Any) -> Any:
        """As the default does."""
        return cast("GuardKeeping", self.default).guarding(other)

    def _each(self, change: Callable[[GuardKeeping], Runnable[Any, Any]]) -> Runnable[Any, Any]:
        others = {
            name: change(other) if isinstance(other, GuardKeeping) else partial(_changed, change, cast("Any", other))
            for name, other in self.alternatives.items()
        }
        return self.model_copy(update={"default": change(cast("GuardKeeping", self.default)), "alternatives": others})


def with_arguments(runnable: Runnable[Any, Any], arguments: Mapping[str, Any]) -> Runnable[Any, Any]:
    """A runnable with arguments bound; itself if there are none."""
    return runnable.bind(**arguments) if arguments else runnable


def _made(guarded: GuardKeeping, make: Callable[[], Any]) -> Any:
    return guarded.guarding(make())


def _changed(change: Callable[[GuardKeeping], Runnable[Any, Any]], make: Callable[[], Any]) -> Runnable[Any, Any]:
    return change(make())


def _kept(binding: Any) -> GuardedBinding:
    return GuardedBinding(**{name: getattr(binding, name) for name in RunnableBinding.model_fields})
