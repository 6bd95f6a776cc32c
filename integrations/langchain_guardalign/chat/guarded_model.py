"""A chat model with a guard in front: for hosted models, of which only the input can be changed.

Masks and the safety prefix are the half of GuardAlign that needs no access to a model's inside; nothing here touches
attention. `screened_runnable` runs what this class decides.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from langchain_core.callbacks import Callbacks
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult, LLMResult, RunInfo
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, PrivateAttr, SkipValidation, field_validator, model_validator
from typing_extensions import Self

from guardalign_guardrails.content.chat import ChatDecision, OnViolation, PlacementSetting
from langchain_guardalign.artifacts import Artifacts
from langchain_guardalign.chat import wrapped_model as wrapped
from langchain_guardalign.chat.accepted_model import accepted, carried, chat_model_in, chat_models_in, names_in
from langchain_guardalign.chat.delegation import Delegation, TargetBatch, by_target
from langchain_guardalign.chat.refusal import RefusingModel
from langchain_guardalign.chat.screened_runnable import ScreenedRunnable
from langchain_guardalign.chat.structured import GuardedStructuredOutput
from langchain_guardalign.component import GuardedComponent
from langchain_guardalign.derived import Change, with_arguments
from langchain_guardalign.errors.violations import not_retried
from langchain_guardalign.events import AsyncLLMRun, LLMRun, config_within
from langchain_guardalign.rewrite import with_prefix
from langchain_guardalign.screening import ModelInput, screen

if TYPE_CHECKING:
    from langchain_core.language_models import ModelProfile

_OF_THE_WRAPPED_MODEL: Final = (
    "cache",
    "callbacks",
    "custom_get_token_ids",
    "disable_streaming",
    "output_version",
    "rate_limiter",
    "tags",
)


class GuardedChatModel(ScreenedRunnable, GuardedComponent, BaseChatModel):  # type: ignore[misc]  # its own bindings
    """Wraps a chat model so that it never sees what the policy forbids. It is a chat model itself.

    By the severest action on an image of the current user turn:

    - ``allow``, ``flag``: the model answers.
    - ``prefix``, ``mask``: the model answers; it is given the policy's prefix and the masked images.
    - ``route``: ``route_to`` answers, with a notice in the image's place; without ``route_to`` it counts as ``block``.
    - ``block``: by ``on_violation``.

    Images of earlier turns, tool results and the model's own are checked, masked and replaced by notices as well, but
    never refused again: a chat can go on after a refusal.

    A call is a run of the guarded model, under the config of the call, which shows the caller's messages without what
    was taken out and without the prefix; message histories and listeners go by it. Within it is the run of the model
    which answers, whose cache, rate limiter, retries and streaming are its own. The custom event
    ``guardalign.verdict`` precedes both, within the enclosing run if there is one.

    ``with_retry`` and ``with_fallbacks`` retry and fall back behind the guard: it checks once, its errors are neither
    retried nor fallen back on, and no fallback gets an image that was not checked.

    Attributes:
        model: The wrapped model: a chat model, the name that `init_chat_model` takes or what it gives, or a binding of
            a chat model (``bind``, ``with_config``, ``with_retry``, ``with_fallbacks``). A direct call of it goes
            around the guard.
        guard: Checks: a guard, a policy or its file's path, or settings; None for the policy that ships with the
            package.
        on_violation: ``refuse`` answers with the policy's refusal, and no model is asked; ``notice`` lets the model
            answer, with a notice in the image's place; ``raise`` raises `UnsafeContentError`.
        route_to: Answers inputs whose severest action is ``route``; given as ``model`` is.
        placement: Where the prefix goes: ``system``, ``user`` for models that know no system message, or ``auto`` for
            the model's name.
        artifacts: In which ``artifact`` of tool messages images are checked and replaced too: ``True`` for all, ``mcp``
            for those of MCP tools, which hold what the server sent, ``False`` for none.

    Raises:
        SettingsError: ``model`` or ``route_to`` is no chat model and no binding of one.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: SkipValidation[Runnable[LanguageModelInput, Any]]
    on_violation: OnViolation = "refuse"
    route_to: SkipValidation[Runnable[LanguageModelInput, Any] | None] = None
    placement: PlacementSetting = "auto"
    artifacts: Artifacts = "mcp"

    # What bind_tools bound for each model: providers write tools differently.
    _for_model: dict[str, Any] = PrivateAttr(default_factory=dict)
    _for_route: dict[str, Any] = PrivateAttr(default_factory=dict)

    @field_validator("model", "route_to", mode="before")
    @classmethod
    def _is_a_chat_model(cls, value: Any) -> Any:
        return value if value is None else accepted(value)

    @model_validator(mode="after")
    def _leaves_the_run_to_the_model(self) -> Self:
        fields = type(self).model_fields
        given = [
            name
            for name in _OF_THE_WRAPPED_MODEL
            if getattr(self, name) != fields[name].get_default(call_default_factory=True)
        ]
        if set(self.metadata or ()) - {"lc_versions"}:
            given.append("metadata")
        if given:
            raise ValueError(f"set {', '.join(given)} on the wrapped model, whose run goes by it")
        return self

    # What it is

    @property
    def _asked(self) -> BaseChatModel | None:
        """The chat model that is asked first; None if it is made anew for each call."""
        return chat_model_in(self.model)

    @property
    def _llm_type(self) -> str:
        return "guardalign" if self._asked is None else self._asked._llm_type  # noqa: SLF001

    @property
    def model_name(self) -> str:
        """The wrapped model's name. LangChain's agents read it, and else take ``model`` for a name."""
        return names_in(self.model)[0] or self._llm_type

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """The wrapped model's, and the guard: a cache must not mix guarded answers with unguarded ones."""
        own = {
            "policy_fingerprint": self.guard.policy.fingerprint,
            "encoder": self.guard.encoder,
            "on_violation": self.on_violation,
            "placement": self.placement,
            "route_to": self.route_to and _params_of(self.route_to),
        }
        return {**_params_of(self.model), "guardalign": own}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        if self._asked is None:
            return LangSmithParams(ls_model_type="chat")
        return self._asked._get_ls_params(stop=stop, **kwargs)  # noqa: SLF001

    def _resolve_model_profile(self) -> ModelProfile | None:
        return None if self._asked is None else self._asked.profile

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Names of the models, not their fields: some keep what they were given."""
        return [
            ("model", type(self.model).__name__),
            ("guard", self.guard),
            ("on_violation", self.on_violation),
            ("route_to", self.route_to and type(self.route_to).__name__),
            ("placement", self.placement),
        ]

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """What ``dumps`` writes. What tools were bound to the model for routed inputs has no field."""
        return self.to_json_not_implemented() if self._for_route else super().to_json()

    def get_token_ids(self, text: str) -> list[int]:
        """The wrapped model's."""
        return self._counting.get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """The wrapped model's."""
        return self._counting.get_num_tokens(text)

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None, **kwargs: Any
    ) -> int:
        """The wrapped model's count of what it would be given: some counters send their input to the provider.

        An image behind a URL counts as a short text, because some counters fetch it.
        """
        (screened,) = self._screen(screen, [list(messages)], "notice")
        given = cast("list[BaseMessage]", self._delegate(screened, {}).input)
        given = wrapped.without_remote_images(given, self.guard.guard.limits.max_bytes)
        return self._counting.get_num_tokens_from_messages(given, **({"tools": tools} if tools else {}), **kwargs)

    @property
    def _counting(self) -> BaseChatModel:
        if self._asked is None:
            raise NotImplementedError(
                "The model is chosen by the config of a call; count tokens with the chosen model."
            )
        return self._asked

    # What it makes

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools as the wrapped model wants them, and for routed inputs as ``route_to`` does.

        Raises:
            NotImplementedError: One of the two knows no tools.
            TypeError: One of the two binds them in a way that cannot be carried over.
        """
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice

        def bound(model: Any) -> Runnable[LanguageModelInput, Any]:
            return cast("Runnable[LanguageModelInput, Any]", model.bind_tools(tools, **kwargs))

        model, for_model = _unbound(carried(self.model, bound))
        update: dict[str, Any] = {"model": model}
        for_route: dict[str, Any] = {}
        if self.route_to is not None:
            update["route_to"], for_route = _unbound(carried(self.route_to, bound))
        result = self.model_copy(update=update)
        result._for_model, result._for_route = for_model, for_route  # noqa: SLF001  its own class
        return result.bind(**for_model)

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """The wrapped model's structured output, guarded; for routed inputs that of ``route_to``.

        A refusal is no object of the schema. Where a model would refuse, `UnsafeContentError` is raised; with
        ``include_raw`` the refusal is ``raw``, ``parsed`` is None and the error is ``parsing_error``.

        Raises:
            NotImplementedError: One of the two gives no structured output.
        """

        def structured(model: Any) -> Runnable[LanguageModelInput, Any]:
            made = model.with_structured_output(schema, include_raw=include_raw, **kwargs)
            return cast("Runnable[LanguageModelInput, Any]", made)

        return GuardedStructuredOutput(
            model=carried(self.model, structured),
            route_to=self.route_to and carried(self.route_to, structured),
            guarded=self,
            include_raw=include_raw,
        )

    def behind_guard(self, change: Change, arguments: Mapping[str, Any]) -> Runnable[LanguageModelInput, Any]:
        """The same guard in front of other models; tools that are bound here are bound to these."""
        update = {"model": change(with_arguments(self.model, arguments))}
        if self.route_to is not None:
            for_route = self._arguments_for_route(dict(arguments)) if arguments else {}
            update["route_to"] = change(with_arguments(self.route_to, for_route))
        result = self.model_copy(update=update)
        if arguments:
            result._for_model, result._for_route = {}, {}  # noqa: SLF001  its own class
        return result

    # What it does; all else that runs is in ScreenedRunnable

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        run_id: UUID | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Screen all chats in one batch, then let each model generate its share.

        Raises:
            UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``.
        """
        delegations = self._delegations(messages, [{"callbacks": callbacks}] * len(messages), kwargs)
        results = []
        for batch in _batches(delegations):
            own = {**batch.arguments, "run_id": _own(batch, run_id)}
            results.append((batch, wrapped.generate_chats(batch.target, batch.inputs, stop, callbacks, **own)))
        return _joined(results)

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        run_id: UUID | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """`generate` without blocking the event loop."""
        delegations = await self._adelegations(messages, [{"callbacks": callbacks}] * len(messages), kwargs)
        results = []
        for batch in _batches(delegations):
            own = {**batch.arguments, "run_id": _own(batch, run_id)}
            results.append((batch, await wrapped.agenerate_chats(batch.target, batch.inputs, stop, callbacks, **own)))
        return _joined(results)

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: LLMRun = None, **kwargs: Any
    ) -> ChatResult:
        (batch,) = _batches(self._delegations([messages], [config_within(run_manager)], kwargs))
        return wrapped.generate(batch.target, batch.inputs[0], run_manager, stop=stop, **batch.arguments)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: AsyncLLMRun = None, **kwargs: Any
    ) -> ChatResult:
        (batch,) = _batches(await self._adelegations([messages], [config_within(run_manager)], kwargs))
        return await wrapped.agenerate(batch.target, batch.inputs[0], run_manager, stop=stop, **batch.arguments)

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: LLMRun = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        (batch,) = _batches(self._delegations([messages], [config_within(run_manager)], kwargs))
        yield from wrapped.stream(batch.target, batch.inputs[0], run_manager, stop=stop, **batch.arguments)

    async def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: AsyncLLMRun = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        (batch,) = _batches(await self._adelegations([messages], [config_within(run_manager)], kwargs))
        chunks = wrapped.astream(batch.target, batch.inputs[0], run_manager, stop=stop, **batch.arguments)
        async with aclosing(cast("Any", chunks)):
            async for chunk in chunks:
                yield chunk

    # How it decides

    def _screen(
        self, screening: Callable[..., Any], inputs: Sequence[Any], on_violation: OnViolation | None = None
    ) -> Any:
        return screening(
            self.guard.guard,
            inputs,
            artifacts=self.artifacts,
            on_violation=on_violation or self.on_violation,
            can_route=self.route_to is not None,
        )

    def _delegate(
        self, screened: ModelInput, arguments: dict[str, Any], config: RunnableConfig | None = None
    ) -> Delegation:
        decision, policy = cast("ChatDecision", screened.decision), self.guard.policy
        decided = partial(Delegation, decision.handled_by, screened.verdicts)
        shown = screened.shown_input
        if decision.handled_by == "error":
            return decided(screened.messages, shown, not_retried(screened.violation))
        if decision.handled_by == "refusal":
            return decided(screened.messages, shown, RefusingModel.of(policy, screened.violation, screened.verdicts))
        model = self.model
        if decision.handled_by == "route" and self.route_to is not None:
            model, arguments = self.route_to, self._arguments_for_route(arguments)
        given: LanguageModelInput = screened.value
        if decision.is_prefix_due:
            is_text = isinstance(given, str) and not screened.messages
            messages = [HumanMessage(cast("str", given))] if is_text else screened.messages
            place = wrapped.placement_of(self.placement, model, arguments, config)
            given = with_prefix(messages, policy.prefix, place)
        elif screened.verdicts:
            # Not the input: a list that someone appends to meanwhile would bring in what was not checked.
            given = screened.messages
        return decided(given, shown, model, arguments)

    def _arguments_for_route(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """A call's arguments, with what was bound for ``route_to`` in place of what was bound for the model."""
        of_the_call = {
            name: value
            for name, value in arguments.items()
            if name not in self._for_model or value != self._for_model[name]
        }
        return {**self._for_route, **of_the_call}


def _batches(delegations: Sequence[Delegation]) -> list[TargetBatch]:
    """The chats of each model; raises the first error."""
    for each in delegations:
        each.runnable()
    return by_target(delegations)


def _own(batch: TargetBatch, run_id: UUID | None) -> UUID | None:
    """The run id of a call, which LangChain gives to the run of the first chat."""
    return run_id if batch.places[0] == 0 else None


def _joined(results: Sequence[tuple[TargetBatch, LLMResult]]) -> LLMResult:
    """The results of all models as one, in the order of the chats; a single one as it is.

    ``llm_output`` sums up a whole call and belongs to its provider; several are not added up, each generation's message
    has its own.
    """
    if len(results) == 1:
        return results[0][1]
    generations: dict[int, Any] = {}
    runs: dict[int, RunInfo] = {}
    for batch, result in results:
        generations |= dict(zip(batch.places, result.generations, strict=True))
        runs |= dict(zip(batch.places, result.run or (), strict=False))
    return LLMResult(
        generations=[generations[place] for place in sorted(generations)],
        llm_output={},
        run=[runs[place] for place in sorted(runs)] or None,
    )


def _params_of(model: Any) -> dict[str, Any]:
    """What tells a model from others: its parameters, or those that it is made of for each call."""
    asked = chat_model_in(model)
    return {"model": names_in(model)[0]} if asked is None else dict(asked._identifying_params)  # noqa: SLF001


def _unbound(runnable: Any) -> tuple[Runnable[LanguageModelInput, Any], dict[str, Any]]:
    """What ``bind_tools`` bound its arguments to, and these arguments."""
    arguments: dict[str, Any] = {}
    while isinstance(runnable, RunnableBinding) and not runnable.config and not runnable.config_factories:
        runnable, arguments = runnable.bound, {**runnable.kwargs, **arguments}
    if not chat_models_in(runnable):
        raise TypeError(
            f"The model binds tools as a {type(runnable).__name__}, which cannot be guarded as a chat model; put an "
            "ImageGuard in front of it instead: guard | model.bind_tools(tools)."
        )
    return runnable, arguments
