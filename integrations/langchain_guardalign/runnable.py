"""The guard as a LangChain runnable: model input in, sanitised model input out, to be put in front of any chat model.

Its own run records no image: tracers get the messages with text in place of every image. What an enclosing chain or the
model itself records is theirs to decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AnyMessage
from langchain_core.prompt_values import ChatPromptValueConcrete, StringPromptValue
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnablePassthrough,
    RunnableSerializable,
    get_config_list,
)
from langchain_core.runnables.base import RunnableLike, coerce_to_runnable
from pydantic import ConfigDict, field_validator

from guardalign_guardrails import UnsafeContentError, Verdict
from guardalign_guardrails.content.chat import OnViolation, Placement, first_violation
from guardalign_guardrails.errors import SettingsError
from guardalign_guardrails.guarding.settings import GuardLike
from langchain_guardalign.artifacts import Artifacts
from langchain_guardalign.component import GuardedComponent
from langchain_guardalign.derived import Change, GuardKeeping
from langchain_guardalign.errors.violations import not_retried
from langchain_guardalign.events import Configs, adispatch, dispatch, traced_input
from langchain_guardalign.route import GuardedRoute
from langchain_guardalign.screening import (
    GuardReport,
    ModelInput,
    ascreen,
    output_of,
    read_input,
    report_of,
    screen,
)

Result = TypeVar("Result")


class ImageGuard(GuardKeeping, GuardedComponent, RunnableSerializable[LanguageModelInput, LanguageModelInput]):
    """Checks every image of a model input and passes the input on without what the policy forbids.

    Takes what a chat model takes (a string, a list of message-likes, a prompt value) and returns the same type; the
    very same object if nothing has to change. By the action of each image:

    - ``allow``: nothing changes, except that the guard's own reading takes the place of an image with several.
    - ``flag``: only the verdict is put on record.
    - ``prefix``: the policy's prefix goes to the head of the first system message (a new one if there is none), once.
    - ``mask``: the masked image, as PNG, takes the original's place in the same block; the prefix too.
    - ``block``, ``route``: a short notice takes the image's place, or `UnsafeContentError` is raised, by
      ``on_violation``. To send such inputs elsewhere see `route`; to refuse without asking the model,
      `GuardedChatModel`.

    An image given as a URL that the policy lets be fetched is inlined, so that the model sees the bytes that were
    checked.

    Verdicts are found in ``message.response_metadata["guardalign"]`` of messages with a finding or a replaced image
    (chat models do not send it to a provider), in the custom event ``guardalign.verdict`` of every input with an image,
    and in what `inspect` returns. None of them holds pixels.

    The guard's own run shows tracers text in place of every image. An enclosing chain records its raw input all the
    same; keep it out of a trace with the tracer's settings (LangSmith: ``LANGSMITH_HIDE_INPUTS=true``).

    ``batch`` checks the images of all its inputs together, or of ``max_concurrency`` of them at a time if the config
    says so. ``dumps`` and ``load`` work unless it was given a ready guard.

    Attributes:
        guard: Checks: a guard, a policy or its file's path, or settings; None for the policy that ships with the
            package. May be given without its name.
        on_violation: What happens with what the policy blocks: ``notice`` puts a short text in the image's place,
            ``raise`` raises `UnsafeContentError` for an image of the user's current turn, and puts that text in the
            place of others. Everything else (masks, prefix, flags) is in the policy.
        artifacts: In which ``artifact`` of tool messages images are checked and replaced too: ``True`` for all, ``mcp``
            for those of MCP tools, which hold what the server sent, ``False`` for none. Models are not given artifacts,
            but apps put them back into chats.
        placement: Where the prefix goes: ``system``, or ``user`` for models that know no system message.

    Raises:
        SettingsError: ``on_violation`` is ``refuse``: a runnable in front of a model cannot answer in its place.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    on_violation: OnViolation = "notice"
    artifacts: Artifacts = "mcp"
    placement: Placement = "system"

    def __init__(self, guard: GuardLike = None, **settings: Any) -> None:
        super().__init__(guard=guard, **settings)  # type: ignore[arg-type]  # the field takes all of it

    @field_validator("on_violation")
    @classmethod
    def _answers_nothing(cls, value: OnViolation) -> OnViolation:
        if value == "refuse":
            raise SettingsError(
                "An ImageGuard cannot refuse: it gives no answer. Use GuardedChatModel or GuardAlignMiddleware, or "
                "on_violation='notice' or 'raise'."
            )
        return value

    @property
    def InputType(self) -> TypeAlias:  # noqa: N802  LangChain's name
        """What chat models take, with concrete message classes for a better schema."""
        return str | StringPromptValue | ChatPromptValueConcrete | list[AnyMessage]

    @property
    def OutputType(self) -> TypeAlias:  # noqa: N802  LangChain's name
        """The same as what comes in."""
        return self.InputType

    def inspect(self, input: LanguageModelInput) -> GuardReport:
        """Check one input and report; never raises for a finding, also if ``on_violation`` is ``raise``."""
        return _raised(self.inspect_batch([input])[0])

    async def ainspect(self, input: LanguageModelInput) -> GuardReport:
        """`inspect` without blocking the event loop."""
        return _raised((await self.ainspect_batch([input]))[0])

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
        return self._reports([self._read(value) for value in inputs], at_once)

    async def ainspect_batch(
        self, inputs: Sequence[LanguageModelInput], *, at_once: int | None = None
    ) -> list[GuardReport | Exception]:
        """`inspect_batch` without blocking the event loop."""
        return await self._areports([self._read(value) for value in inputs], at_once)

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
        return GuardedRoute(
            guard=self.guard,
            artifacts=self.artifacts,
            placement=self.placement,
            safe=coerce_to_runnable(safe),
            unsafe=coerce_to_runnable(unsafe),
        )

    def with_retry(self, **settings: Any) -> Runnable[LanguageModelInput, LanguageModelInput]:
        """Itself: what it raises it would raise again. Retry the model behind it."""
        return self

    def falling_back(
        self, fallbacks: Sequence[Runnable[Any, Any]], settings: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> Runnable[Any, Any]:
        """`with_fallbacks`: where a violation is raised and handled, a fallback gets the input with notices in it.

        What cannot be checked at all is an error, whatever the fallbacks.
        """
        handled = settings.get("exceptions_to_handle", (Exception,))
        if self.on_violation != "raise" or not issubclass(UnsafeContentError, handled) or not fallbacks:
            return self
        first, *others = map(coerce_to_runnable, fallbacks)
        return self.route(RunnablePassthrough(), first.with_fallbacks(others, **settings) if others else first)

    def behind_guard(self, change: Change, arguments: Mapping[str, Any]) -> Runnable[Any, Any]:
        """A chain of itself and what is made of a runnable that passes everything on."""
        return cast("Runnable[Any, Any]", self | change(RunnablePassthrough()))

    def guarding(self, other: Any) -> Any:
        """The other: an alternative to a guard takes its place."""
        return other

    @property
    def is_step(self) -> bool:
        """True: what comes next in a chain answers."""
        return True

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> LanguageModelInput:
        """Sanitise one input; further keyword arguments, meant for a model, are ignored.

        Raises:
            UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``.
        """
        read = self._read(input)
        results: list[LanguageModelInput] = []

        def run(_: Any, run_manager: Any, config: RunnableConfig) -> Any:
            (report,) = self._reports([read])
            dispatch(_verdicts(report), config)
            results.append(_raised(self._result(report)))
            return self._traced(report, results[0], run_manager)

        self._call_with_config(run, traced_input(read, config), config)
        return results[0]

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> LanguageModelInput:
        """`invoke` without blocking the event loop."""
        read = self._read(input)
        results: list[LanguageModelInput] = []

        async def run(_: Any, run_manager: Any, config: RunnableConfig) -> Any:
            (report,) = await self._areports([read])
            await adispatch(_verdicts(report), config)
            results.append(_raised(self._result(report)))
            return self._traced(report, results[0], run_manager)

        await self._acall_with_config(run, traced_input(read, config), config)
        return results[0]

    def batch(
        self, inputs: list[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[LanguageModelInput]:
        """Sanitise several inputs; the images of all of them are checked in one batch."""
        if not inputs:
            return []
        configs, read = get_config_list(config, len(inputs)), [self._read(value) for value in inputs]
        results: list[LanguageModelInput | Exception] = []

        def run(_: Any, run_manager: Any, config: list[RunnableConfig]) -> list[Any]:
            reports = self._reports(read, _max_concurrency(config))
            for report, own in zip(reports, config, strict=True):
                dispatch(_verdicts(report), own)
            results.extend(map(self._result, reports))
            return list(map(self._traced, reports, results, run_manager))

        traced = list(map(traced_input, read, configs))
        ended = self._batch_with_config(run, traced, configs, return_exceptions=return_exceptions)
        return cast("list[LanguageModelInput]", results or ended)

    async def abatch(
        self, inputs: list[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[LanguageModelInput]:
        """`batch` without blocking the event loop."""
        if not inputs:
            return []
        configs, read = get_config_list(config, len(inputs)), [self._read(value) for value in inputs]
        results: list[LanguageModelInput | Exception] = []

        async def run(_: Any, run_manager: Any, config: list[RunnableConfig]) -> list[Any]:
            reports = await self._areports(read, _max_concurrency(config))
            for report, own in zip(reports, config, strict=True):
                await adispatch(_verdicts(report), own)
            results.extend(map(self._result, reports))
            return list(map(self._traced, reports, results, run_manager))

        traced = list(map(traced_input, read, configs))
        ended = await self._abatch_with_config(run, traced, configs, return_exceptions=return_exceptions)
        return cast("list[LanguageModelInput]", results or ended)

    def _read(self, value: LanguageModelInput) -> ModelInput:
        return read_input(value, artifacts=self.artifacts)

    def _reports(self, inputs: Sequence[ModelInput], at_once: int | None = None) -> list[GuardReport | Exception]:
        parts = [
            screen(self.guard.guard, part, artifacts=self.artifacts, on_violation="notice")
            for part in _parts(inputs, at_once)
        ]
        return [report_of(self.guard.policy, screened, self.placement) for part in parts for screened in part]

    async def _areports(
        self, inputs: Sequence[ModelInput], at_once: int | None = None
    ) -> list[GuardReport | Exception]:
        parts = [
            await ascreen(self.guard.guard, part, artifacts=self.artifacts, on_violation="notice")
            for part in _parts(inputs, at_once)
        ]
        return [report_of(self.guard.policy, screened, self.placement) for part in parts for screened in part]

    def _result(self, report: GuardReport | Exception) -> Any:
        if isinstance(report, Exception):
            return report
        # Of an earlier turn or a tool it is no error, or a chat that keeps it could never go on.
        current = [verdict for verdict in report.verdicts if verdict.source == "user"]
        verdict = first_violation(current) if self.on_violation == "raise" else None
        return report.output if verdict is None else not_retried(verdict)

    def _traced(
        self,
        report: GuardReport | Exception,
        result: LanguageModelInput | Exception,
        run_manager: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun,
    ) -> Any:
        """The output that the run's trace holds, made only if there is a trace; the error of a result that is one."""
        if isinstance(result, Exception):
            return result
        if not run_manager.handlers or isinstance(report, Exception):
            return None
        return output_of(self.guard.policy, report.screened, self.placement, is_traced=True)


def _verdicts(report: GuardReport | Exception) -> tuple[Verdict, ...]:
    return report.verdicts if isinstance(report, GuardReport) else ()


def _parts(inputs: Sequence[ModelInput], at_once: int | None) -> Iterator[Sequence[ModelInput]]:
    size = at_once or max(len(inputs), 1)
    return (inputs[first : first + size] for first in range(0, len(inputs), size))


def _max_concurrency(config: Sequence[RunnableConfig]) -> int | None:
    """As LangChain's own batches do, the first input's config decides for all."""
    return config[0].get("max_concurrency") if config else None


def _raised(result: Result | Exception) -> Result:
    if isinstance(result, Exception):
        raise result
    return result
