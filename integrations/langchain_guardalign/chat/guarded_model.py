"""A chat model with a guard in front: for hosted models, of which only the input can be changed.

Masks and the safety prefix are the half of GuardAlign that needs no access to a model's inside; nothing here touches
attention. What is decided is in `_ruling`, how it is carried out in `_screened_runnable`; this is the chat model.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator
from typing_extensions import Self

from guardalign_guardrails import Guard, Policy
from guardalign_guardrails.content.chat import OnViolation, Placement, placement_for
from langchain_guardalign.chat import inner_calls as inner
from langchain_guardalign.chat.countable import without_remote_images
from langchain_guardalign.chat.decisions import InputDecision, InputRules, adecide_inputs, decide_inputs, refusal_of
from langchain_guardalign.chat.generation import joined, shares
from langchain_guardalign.chat.placement import name_of
from langchain_guardalign.chat.screened_runnable import Passage, ScreenedRunnable
from langchain_guardalign.chat.structured import GuardedStructuredOutput
from langchain_guardalign.runnable import ImageGuard

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


class GuardedChatModel(ScreenedRunnable, BaseChatModel):
    """Wraps a chat model so that it never sees what the policy forbids. It is a chat model itself.

    By the severest action on an image of the current user turn:

    - ``allow``, ``flag``: the model answers.
    - ``prefix``, ``mask``: the model answers; it is given the policy's prefix and the masked images.
    - ``route``: ``route_to`` answers, with a notice in the image's place; without ``route_to`` it counts as ``block``.
    - ``block``: by ``on_violation``.

    Images of earlier turns, tool results and the model's own are checked, masked and replaced by notices as well, but
    never refused again: a chat can go on after a refusal.

    There is one run per call in traces and callbacks: that of the model which answers, with sanitised messages, under
    the config of the call. Its cache, rate limiter, retries and streaming are its own. The custom event
    ``guardalign.verdict`` precedes it, within the enclosing run if there is one.

    Attributes:
        model: The wrapped model. Whoever calls it directly goes around the guard.
        guard: What checks: an `ImageGuard`, a ready `Guard`, or a `Policy`. An `ImageGuard`'s own ``on_violation``
            does not count here.
        on_violation: ``refuse`` answers with the policy's refusal, and no model is asked; ``notice`` lets the model
            answer, with a notice in the image's place; ``raise`` raises `UnsafeContentError`.
        route_to: Answers inputs whose severest action is ``route``.
        placement: Where the prefix goes: ``system``, ``user`` for models that know no system message, or ``auto`` for
            what the model's name says.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: BaseChatModel
    guard: ImageGuard = Field(default_factory=ImageGuard)
    on_violation: OnViolation = "refuse"
    route_to: BaseChatModel | None = None
    placement: Literal["auto"] | Placement = "auto"

    # What bind_tools bound for each model: providers write tools differently.
    _for_model: dict[str, Any] = PrivateAttr(default_factory=dict)
    _for_route: dict[str, Any] = PrivateAttr(default_factory=dict)

    @field_validator("guard", mode="before")
    @classmethod
    def _as_image_guard(cls, value: Any) -> Any:
        if isinstance(value, Guard):
            return ImageGuard.from_guard(value)
        return ImageGuard(policy=value) if isinstance(value, Policy) else value

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
            raise ValueError(f"set {', '.join(given)} on the wrapped model: its run is the only one there is")
        return self

    # What it is

    @property
    def _llm_type(self) -> str:
        return self.model._llm_type  # noqa: SLF001

    @property
    def model_name(self) -> str:
        """The wrapped model's name. LangChain's agents read it, and else take ``model`` for a name."""
        return name_of(self.model) or self._llm_type

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """The wrapped model's, and the guard: a cache must not mix guarded answers with unguarded ones."""
        guard = self.guard.active_guard
        own = {
            "policy_fingerprint": guard.policy.fingerprint,
            "encoder": guard.detector.encoder.name,
            "on_violation": self.on_violation,
            "placement": self.placement,
            "route_to": self.route_to and dict(self.route_to._identifying_params),  # noqa: SLF001
        }
        return {**self.model._identifying_params, "guardalign": own}  # noqa: SLF001

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.model._get_ls_params(stop=stop, **kwargs)  # noqa: SLF001

    def _resolve_model_profile(self) -> ModelProfile | None:
        return self.model.profile

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Names of the models, not their fields: some keep what they were given."""
        return [
            ("model", type(self.model).__name__),
            ("guard", self.guard),
            ("on_violation", self.on_violation),
            ("route_to", self.route_to and type(self.route_to).__name__),
            ("placement", self.placement),
        ]

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True; ``dumps`` works as far as it does for the wrapped model and the guard."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where `langchain_core.load.load` finds the class, whatever module it is in."""
        return ["langchain_guardalign"]

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """What ``dumps`` writes. What tools were bound to the model for routed inputs has no field."""
        return self.to_json_not_implemented() if self._for_route else super().to_json()

    def get_token_ids(self, text: str) -> list[int]:
        """The wrapped model's."""
        return self.model.get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """The wrapped model's."""
        return self.model.get_num_tokens(text)

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None, **kwargs: Any
    ) -> int:
        """The wrapped model's count of what it would be given: some counters send their input to the provider.

        Images behind URLs count as a few words, because some counters fetch them.
        """
        (decision,) = decide_inputs(self.guard, [list(messages)], replace(self._rules(), on_violation="notice"))
        given = without_remote_images(
            cast("list[BaseMessage]", decision.input), self.guard.active_guard.limits.max_bytes
        )
        return self.model.get_num_tokens_from_messages(given, **({"tools": tools} if tools else {}), **kwargs)

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
        model, for_model = _unbound(self.model.bind_tools(tools, **kwargs))
        update: dict[str, Any] = {"model": model}
        for_route: dict[str, Any] = {}
        if self.route_to is not None:
            update["route_to"], for_route = _unbound(self.route_to.bind_tools(tools, **kwargs))
        bound = self.model_copy(update=update)
        bound._for_model, bound._for_route = for_model, for_route  # noqa: SLF001  its own class
        return bound.bind(**for_model)

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """The wrapped model's structured output, guarded; for routed inputs that of ``route_to``.

        A refusal is no object of the schema. Where a model would refuse, `UnsafeContentError` is raised; with
        ``include_raw`` the refusal is ``raw``, ``parsed`` is None and the error is ``parsing_error``.

        Raises:
            NotImplementedError: One of the two gives no structured output.
        """
        return GuardedStructuredOutput(
            model=self.model.with_structured_output(schema, include_raw=include_raw, **kwargs),
            route_to=self.route_to and self.route_to.with_structured_output(schema, include_raw=include_raw, **kwargs),
            guard=self.guard,
            rules=self._rules(),
            include_raw=include_raw,
        )

    # What it does; all else that runs is in ScreenedRunnable

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        run_name: str | None = None,
        run_id: UUID | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Screen all chats in one batch, then let each model generate its share.

        Raises:
            UnsafeContentError: An image was blocked and ``on_violation`` is ``raise``.
        """
        run: dict[str, Any] = {
            "stop": stop,
            "callbacks": callbacks,
            "tags": tags,
            "metadata": metadata,
            "run_name": run_name,
        }
        passages = self._announced(cast("Any", messages), [{"callbacks": callbacks}] * len(messages), kwargs)
        return joined(
            [
                (share, share.model.generate(share.chats, run_id=share.own(run_id), **run, **share.arguments))
                for share in shares(passages)
            ]
        )

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        run_name: str | None = None,
        run_id: UUID | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """`generate` without blocking the event loop."""
        run: dict[str, Any] = {
            "stop": stop,
            "callbacks": callbacks,
            "tags": tags,
            "metadata": metadata,
            "run_name": run_name,
        }
        passages = await self._aannounced(cast("Any", messages), [{"callbacks": callbacks}] * len(messages), kwargs)
        return joined(
            [
                (share, await share.model.agenerate(share.chats, run_id=share.own(run_id), **run, **share.arguments))
                for share in shares(passages)
            ]
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        (share,) = shares(self._announced([messages], [inner.config_within(run_manager)], kwargs))
        return inner.generate(share.model, share.chats[0], run_manager, stop=stop, **share.arguments)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        (share,) = shares(await self._aannounced([messages], [inner.config_within(run_manager)], kwargs))
        return await inner.agenerate(share.model, share.chats[0], run_manager, stop=stop, **share.arguments)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        (share,) = shares(self._announced([messages], [inner.config_within(run_manager)], kwargs))
        yield from inner.stream(share.model, share.chats[0], run_manager, stop=stop, **share.arguments)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        (share,) = shares(await self._aannounced([messages], [inner.config_within(run_manager)], kwargs))
        chunks = inner.astream(share.model, share.chats[0], run_manager, stop=stop, **share.arguments)
        async with aclosing(cast("Any", chunks)):
            async for chunk in chunks:
                yield chunk

    # How it decides

    def _passages(self, inputs: Sequence[LanguageModelInput], arguments: dict[str, Any]) -> list[Passage]:
        return [
            self._way(decision, arguments) for decision in decide_inputs(self.guard, inputs, self._rules(arguments))
        ]

    async def _apassages(self, inputs: Sequence[LanguageModelInput], arguments: dict[str, Any]) -> list[Passage]:
        return [
            self._way(decision, arguments)
            for decision in await adecide_inputs(self.guard, inputs, self._rules(arguments))
        ]

    def _way(self, decision: InputDecision, arguments: dict[str, Any]) -> Passage:
        target: BaseChatModel | Exception
        if decision.handled_by is None:
            target, arguments = decision.error or RuntimeError("an input without a decision"), {}
        elif decision.handled_by == "refusal":
            target, arguments = refusal_of(self.guard.active_guard.policy, decision), {}
        else:
            target, arguments = self._answerer(decision.handled_by), self._arguments(decision.handled_by, arguments)
        return Passage(decision.verdicts, decision.input, target, arguments)

    def _answerer(self, which: Literal["model", "route_to"]) -> BaseChatModel:
        return self.route_to if which == "route_to" and self.route_to is not None else self.model

    def _arguments(self, which: Literal["model", "route_to"], arguments: dict[str, Any]) -> dict[str, Any]:
        """A call's arguments, with what was bound for the one model as it was bound for the other."""
        if which == "model" or not (self._for_model or self._for_route):
            return arguments
        of_the_call = {
            name: value
            for name, value in arguments.items()
            if name not in self._for_model or value != self._for_model[name]
        }
        return {**self._for_route, **of_the_call}

    def _rules(self, arguments: dict[str, Any] | None = None) -> InputRules:
        def place(which: Literal["model", "route_to"]) -> Placement:
            if self.placement != "auto":
                return self.placement
            own = self._arguments(which, arguments or {})
            return "user" if self.guard.placement == "user" else placement_for(name_of(self._answerer(which), own))

        return InputRules(self.on_violation, self.route_to is not None, place)


def _unbound(runnable: Any) -> tuple[BaseChatModel, dict[str, Any]]:
    """The model in what ``bind_tools`` returned, and what it is called with."""
    arguments: dict[str, Any] = {}
    while isinstance(runnable, RunnableBinding) and not runnable.config and not runnable.config_factories:
        runnable, arguments = runnable.bound, {**runnable.kwargs, **arguments}
    if not isinstance(runnable, BaseChatModel):
        raise TypeError(
            f"The model binds tools as a {type(runnable).__name__}, which cannot be guarded as a chat model; put an "
            "ImageGuard in front of it instead: guard | model.bind_tools(tools)."
        )
    return runnable, arguments
