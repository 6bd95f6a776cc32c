"""The guard as a LangChain runnable: model input in, sanitised model input out, to be put in front of any chat model.

Its own run records no image: tracers get the messages with every image replaced by a few words. What an enclosing chain
or the model itself records is theirs to decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.messages import AnyMessage
from langchain_core.prompt_values import ChatPromptValueConcrete, StringPromptValue
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.base import RunnableLike
from pydantic import ConfigDict, Field, PrivateAttr, model_validator
from typing_extensions import Self

from guardalign_guardrails import Guard, Policy, UnsafeContentError
from guardalign_guardrails.content.chat import Placement, first_violation
from guardalign_guardrails.guarding.settings import GuardSettings
from langchain_guardalign.events import aannounce, announce
from langchain_guardalign.screening import GuardReport, ascreen, screen, unpack, without_images


class ImageGuard(RunnableSerializable[LanguageModelInput, LanguageModelInput]):
    """Checks every image of a model input and passes the input on without what the policy forbids.

    Takes what a chat model takes (a string, a list of message-likes, a prompt value) and returns the same type; the
    very same object if nothing has to change. By the action of each image:

    - ``allow``: nothing changes.
    - ``flag``: only the verdict is put on record.
    - ``prefix``: the policy's prefix goes to the head of the first system message (a new one if there is none), once.
    - ``mask``: the masked image, as PNG, takes the original's place in the same block; the prefix too.
    - ``block``, ``route``: a short notice takes the image's place, or `UnsafeContentError` is raised, by
      ``on_violation``. To send such inputs elsewhere see `route`; to refuse without asking the model,
      `GuardedChatModel`.

    An image given as a URL that the policy lets be fetched is inlined, so that the model sees the bytes that were
    checked.

    Verdicts are found in ``message.response_metadata["guardalign"]`` of messages with a finding (chat models do not
    send it to a provider), in the custom event ``guardalign.verdict`` of every input with an image, and in what
    `inspect` returns. None of them holds pixels.

    The guard's own run shows tracers words in place of every image. An enclosing chain records its raw input all the
    same; keep it out of a trace with the tracer's settings (LangSmith: ``LANGSMITH_HIDE_INPUTS=true``).

    ``batch`` checks the images of all its inputs together, or of ``max_concurrency`` of them at a time if the config
    says so. ``dumps`` and ``load`` work unless it was made around a ready guard.

    Attributes:
        policy: What is unsafe and what to do; None for the policy that ships with the package.
        encoder: Encoder name.
        profile: Calibration profile; None for the one that fits among the user's and the shipped ones.
        cache_dir: Folder for anchor features; None for the user's cache folder.
        guard: A ready guard instead of the four above.
        on_violation: What happens with what the policy blocks: ``notice`` puts a short text in the image's place,
            ``raise`` raises `UnsafeContentError`. Everything else (masks, prefix, flags) is in the policy.
        artifacts: Whether images in the ``artifact`` of tool messages are checked and replaced too. Models are not
            given artifacts, but apps put them back into chats.
        placement: Where the prefix goes: ``system``, or ``user`` for models that know no system message.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    policy: Policy | None = None
    encoder: str = "offline"
    profile: Path | None = None
    cache_dir: Path | None = None
    guard: Guard | None = Field(default=None, exclude=True, repr=False)
    on_violation: Literal["notice", "raise"] = "notice"
    artifacts: bool = False
    placement: Placement = "system"

    _made: Guard | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _is_told_once(self) -> Self:
        if self.guard is not None and (self.policy, self.encoder, self.profile, self.cache_dir) != (
            None,
            "offline",
            None,
            None,
        ):
            raise ValueError("a guard has its own policy, encoder, profile and cache folder: give either it or them")
        return self

    @classmethod
    def from_guard(cls, guard: Guard, **settings: Any) -> Self:
        """A runnable around a ready guard; ``settings`` are ``on_violation``, ``artifacts`` and ``placement``."""
        return cls(guard=guard, **settings)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True; one made around a ready guard dumps as not implemented all the same."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where `langchain_core.load.load` finds the class, whatever module it is in."""
        return ["langchain_guardalign"]

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """The fields that are not JSON, as JSON."""
        return {
            **({"policy": self.policy.to_dict()} if self.policy else {}),
            **{name: str(path) for name in ("profile", "cache_dir") if (path := getattr(self, name))},
        }

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """What ``dumps`` writes. A ready guard holds weights, which are no text."""
        return self.to_json_not_implemented() if self.guard is not None else super().to_json()

    @property
    def active_guard(self) -> Guard:
        """The guard in use. Made on first access; runnables with equal settings share one."""
        if self.guard is not None:
            return self.guard
        if self._made is None:
            policy = self.policy or Policy.default()
            settings = GuardSettings(
                policy=policy, encoder=self.encoder, profile=self.profile, cache_dir=self.cache_dir
            )
            self._made = settings.guard
        return self._made

    @property
    def InputType(self) -> TypeAlias:  # noqa: N802  LangChain's name
        """What chat models take, with concrete message classes for a better schema."""
        return str | StringPromptValue | ChatPromptValueConcrete | list[AnyMessage]

    @property
    def OutputType(self) -> TypeAlias:  # noqa: N802  LangChain's name
        """The same as what comes in."""
        return self.InputType

    def inspect(self, input: LanguageModelInput) -> GuardReport:  # noqa: A002  LangChain's name
        """Check one input and report; never raises for what it finds, whatever ``on_violation`` says."""
        return unpack(self.inspect_batch([input])[0])

    async def ainspect(self, input: LanguageModelInput) -> GuardReport:  # noqa: A002  LangChain's name
        """`inspect` without blocking the event loop."""
        return unpack((await self.ainspect_batch([input]))[0])

    def inspect_batch(
        self, inputs: Sequence[LanguageModelInput], *, at_once: int | None = None
    ) -> list[GuardReport | Exception]:
        """Check inputs together.

        Args:
            inputs: Model inputs.
            at_once: Most inputs whose images are checked together; None for all.

        Returns:
            One report per input, or the error that makes an input unreadable.
        """
        reports: list[GuardReport | Exception] = []
        for part in _parts(inputs, at_once):
            reports += screen(self.active_guard, part, artifacts=self.artifacts, placement=self.placement)
        return reports

    async def ainspect_batch(
        self, inputs: Sequence[LanguageModelInput], *, at_once: int | None = None
    ) -> list[GuardReport | Exception]:
        """`inspect_batch` without blocking the event loop."""
        reports: list[GuardReport | Exception] = []
        for part in _parts(inputs, at_once):
            reports += await ascreen(self.active_guard, part, artifacts=self.artifacts, placement=self.placement)
        return reports

    def route(
        self, safe: RunnableLike[LanguageModelInput, Any], unsafe: RunnableLike[LanguageModelInput, Any]
    ) -> Runnable[LanguageModelInput, Any]:
        """Choose between two runnables, checking once.

        Args:
            safe: Gets the sanitised input if the severest action is milder than ``route``.
            unsafe: Gets it otherwise. The images that led here are not in it, only notices in their place.

        Returns:
            A runnable from model input to what the chosen one returns; its streams are passed on as they come.
        """
        from langchain_guardalign.route import GuardedRoute

        return GuardedRoute.of(self, safe, unsafe)

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> LanguageModelInput:
        """Sanitise one input; further keyword arguments, meant for a model, are ignored.

        Raises:
            UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``.
        """
        results: list[LanguageModelInput] = []

        def run(_: Any, run_manager: Any, config: RunnableConfig) -> Any:
            report = self.inspect(input)
            announce(report, config)
            results.append(_raised(self._result(report)))
            return traced if report.output is input else without_images(report.output)

        traced = without_images(input)
        self._call_with_config(run, traced, config)
        return results[0]

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002  LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> LanguageModelInput:
        """`invoke` without blocking the event loop."""
        results: list[LanguageModelInput] = []

        async def run(_: Any, run_manager: Any, config: RunnableConfig) -> Any:
            report = await self.ainspect(input)
            await aannounce(report, config)
            results.append(_raised(self._result(report)))
            return traced if report.output is input else without_images(report.output)

        traced = without_images(input)
        await self._acall_with_config(run, traced, config)
        return results[0]

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[LanguageModelInput]:
        """Sanitise several inputs; the images of all of them are checked in one batch."""
        results: list[LanguageModelInput | Exception] = []

        def run(_: Any, run_manager: Any, config: list[RunnableConfig]) -> list[Any]:
            reports = self.inspect_batch(inputs, at_once=_max_concurrency(config))
            for report, own in zip(reports, config, strict=True):
                announce(report, own)
            results.extend(map(self._result, reports))
            return [_traced(result) for result in results]

        traced = [without_images(value) for value in inputs]
        ended = self._batch_with_config(run, traced, config, return_exceptions=return_exceptions)
        return cast("list[LanguageModelInput]", results or ended)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[LanguageModelInput]:
        """`batch` without blocking the event loop."""
        results: list[LanguageModelInput | Exception] = []

        async def run(_: Any, run_manager: Any, config: list[RunnableConfig]) -> list[Any]:
            reports = await self.ainspect_batch(inputs, at_once=_max_concurrency(config))
            for report, own in zip(reports, config, strict=True):
                await aannounce(report, own)
            results.extend(map(self._result, reports))
            return [_traced(result) for result in results]

        traced = [without_images(value) for value in inputs]
        ended = await self._abatch_with_config(run, traced, config, return_exceptions=return_exceptions)
        return cast("list[LanguageModelInput]", results or ended)

    def _result(self, report: GuardReport | Exception) -> LanguageModelInput | Exception:
        if isinstance(report, Exception):
            return report
        verdict = first_violation(report.verdicts) if self.on_violation == "raise" else None
        return report.output if verdict is None else UnsafeContentError(verdict)


def _parts(inputs: Sequence[LanguageModelInput], at_once: int | None) -> Iterator[Sequence[LanguageModelInput]]:
    size = at_once or max(len(inputs), 1)
    return (inputs[first : first + size] for first in range(0, len(inputs), size))


def _max_concurrency(config: Sequence[RunnableConfig]) -> int | None:
    """As LangChain's own batches do, the first input's config decides for all."""
    return config[0].get("max_concurrency") if config else None


def _raised(result: LanguageModelInput | Exception) -> LanguageModelInput:
    if isinstance(result, Exception):
        raise result
    return result


def _traced(result: LanguageModelInput | Exception) -> Any:
    return result if isinstance(result, Exception) else without_images(result)
