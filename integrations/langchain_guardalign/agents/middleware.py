"""The guard as middleware of LangChain agents: no image reaches the model, or stays in the state, unchecked.

The policy says what is unsafe, `screening` checks messages, `state` says what a finding means for a turn; this class
connects them to LangChain's hooks. Each hook and its async twin differ in the calls that wait. It knows one agent:
sub-agents and other models beside it need a guard of their own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, get_args

from langchain.agents.middleware import (
    AgentMiddleware,
    AgentState,
    ModelRequest,
    ModelResponse,
    ToolCallRequest,
    TracePolicy,
    hook_config,
    omit_payload,
)
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage
from langgraph.runtime import Runtime
from langgraph.types import Command

from guardalign_guardrails import Verdict
from guardalign_guardrails.content.chat import OnViolation, PlacementSetting
from guardalign_guardrails.errors import SettingsError
from guardalign_guardrails.guarding.pickles import check_pickles
from guardalign_guardrails.guarding.settings import GuardLike, GuardSettings
from langchain_guardalign.agents.state import AgentRules, Review, refused, review
from langchain_guardalign.agents.tool_results import MESSAGES_KEY, Result, chats_of, with_chats
from langchain_guardalign.agents.unguarded import warn_of_models_beside
from langchain_guardalign.artifacts import Artifacts
from langchain_guardalign.chat.refusal import RefusingModel
from langchain_guardalign.chat.wrapped_model import placement_of
from langchain_guardalign.errors.turn_error import UnsafeTurnError
from langchain_guardalign.events import adispatch, dispatch, write_to_stream
from langchain_guardalign.rewrite import with_prefix
from langchain_guardalign.screening import ModelInput, ascreen, screen

Request = ModelRequest[Any]
Response = ModelResponse[Any]
State = AgentState[Any]


class GuardAlignMiddleware(AgentMiddleware[State, Any, Any]):
    """Checks every image of an agent's messages: before they stay in its state and before the model gets them.

    Put it last in the list of middleware, so that no other one changes what it has checked. It guards this one agent:
    for sub-agents and a supervisor, wrap the model (`GuardedChatModel`). Where it can see that a model beside the
    agent's own may get what it does not check, it warns with `UnguardedWarning`.

    - All messages are checked when a turn begins (``before_agent``), before other middleware with a model of its own
      reads the state, and again before each model call (``before_model``). Messages that change keep their ids, so the
      masked image or the notice takes the original's place in the state and in every later checkpoint.
    - Tool results are checked before they enter the state (``wrap_tool_call``).
    - Right before the model, its messages are checked once more (``wrap_model_call``), with whatever other middleware
      made of them; the safety prefix is added to the system message here, and never stays in the state.

    The actions of the policy are those of `ImageGuard`, with these differences:

    - ``block``, if the user sent the image just now: by ``on_violation``. An image of a tool, of the model, or of an
      earlier turn is replaced by a notice and the turn goes on: it is not the user's doing.
    - ``route``: a notice takes the image's place, and the model calls of this turn go to ``route_to``; without one it
      is treated like ``block``.

    Verdicts are reported in the custom event ``guardalign.verdict`` and in the stream mode ``custom``: once, when a
    message comes or is changed. In monitor mode nothing but that happens. Spans of the hooks are traced without inputs
    and outputs.

    Args:
        guard: Checks: a guard, a policy or its file's path, or settings; None for the policy that ships with the
            package. Nothing is loaded until the first image.
        on_violation: What happens to a turn in which the user's image is blocked. ``refuse`` ends it with the policy's
            refusal as the answer. ``raise`` raises `UnsafeContentError`, after the refusal was put into the state (and
            the state cleaned if ``persist`` is on), so that the thread can go on. ``notice`` lets the model answer,
            with a notice in the image's place.
        persist: Whether images in the state are replaced. If not, the originals stay in it and are checked again and
            again; tool results are checked before they enter it in either case.
        route_to: A chat model, or its name as `init_chat_model` takes it.
        artifacts: In which ``artifact`` of tool messages images are checked and replaced too: ``True`` for all, ``mcp``
            for those of MCP tools, which hold what the server sent, ``False`` for none.
        placement: Where the prefix goes: ``system``, ``user`` for models that know no system message, or ``auto`` for
            what the name of the model that answers says.
        name: The middleware's name in the graph, by default that of the class. A paused thread goes on under the name
            it was paused under, whatever became of the policy. LangChain asks for a name of its own for the second
            guard in one agent.

    Raises:
        SettingsError: ``guard`` or ``on_violation`` is none of these.
    """

    # Outputs too: a tool's image that may pass is in them as it came.
    trace_policy = TracePolicy(process_inputs=omit_payload, process_outputs=omit_payload)

    def __init__(
        self,
        guard: GuardLike = None,
        *,
        on_violation: OnViolation = "refuse",
        persist: bool = True,
        route_to: BaseChatModel | str | None = None,
        artifacts: Artifacts = "mcp",
        placement: PlacementSetting = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__()
        if on_violation not in get_args(OnViolation):
            raise SettingsError(f"on_violation is 'refuse', 'notice' or 'raise', not {on_violation!r}.")
        self.guard = GuardSettings.of(guard)
        self.on_violation = on_violation
        self.persist = persist
        self.route_to = init_chat_model(route_to) if isinstance(route_to, str) else route_to
        self.artifacts = artifacts
        self.placement = placement
        self.tools = []
        policy = self.guard.policy
        self._rules = AgentRules(policy, policy.fingerprint, can_route=self.route_to is not None, is_kept=persist)
        self._name = name or type(self).__name__

    def __getstate__(self) -> dict[str, Any]:
        for name, value in self.__dict__.items():
            check_pickles(name, value)
        return self.__dict__

    @property
    def name(self) -> str:
        """The middleware's name in the graph."""
        return self._name

    @hook_config(can_jump_to=["end"])
    def before_agent(self, state: State, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Sanitise the messages of the state, if they are to stay so, before any middleware reads them."""
        return self._cleaned(state, runtime, is_first_look=True)

    @hook_config(can_jump_to=["end"])
    async def abefore_agent(self, state: State, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """`before_agent` without blocking the event loop."""
        return await self._acleaned(state, runtime, is_first_look=True)

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: State, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Sanitise what has come into the state since the turn began.

        Raises:
            UnsafeContentError: The user's image was blocked and ``on_violation`` is ``raise``.
        """
        self._raise_if_refused(state[MESSAGES_KEY])
        return self._cleaned(state, runtime, is_first_look=not self.persist)

    @hook_config(can_jump_to=["end"])
    async def abefore_model(self, state: State, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """`before_model` without blocking the event loop."""
        self._raise_if_refused(state[MESSAGES_KEY])
        return await self._acleaned(state, runtime, is_first_look=not self.persist)

    def wrap_model_call(self, request: Request, handler: Callable[[Request], Response]) -> Response | AIMessage:
        """Sanitise what the model is about to get, or answer in its place.

        Raises:
            UnsafeContentError: The user's image was blocked and ``on_violation`` is ``raise``.
        """
        found = review(self._rules, self._screen([_all_messages(request)])[0], is_first_look=not self.persist)
        warn_of_models_beside(request)
        _report(found.new_verdicts, request.runtime)
        answer = self._answer(found)
        return handler(self._prepared(request, found)) if answer is None else answer

    async def awrap_model_call(
        self, request: Request, handler: Callable[[Request], Awaitable[Response]]
    ) -> Response | AIMessage:
        """`wrap_model_call` without blocking the event loop."""
        found = review(self._rules, (await self._ascreen([_all_messages(request)]))[0], is_first_look=not self.persist)
        warn_of_models_beside(request)
        await _areport(found.new_verdicts, request.runtime)
        answer = self._answer(found)
        return await handler(self._prepared(request, found)) if answer is None else answer

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        """Sanitise what a tool returns."""
        result = handler(request)
        screened = self._screen(chats_of(result))
        _report([verdict for chat in screened for verdict in chat.verdicts], request.runtime)
        return self._returned(result, screened)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        """`wrap_tool_call` without blocking the event loop."""
        result = await handler(request)
        screened = await self._ascreen(chats_of(result))
        await _areport([verdict for chat in screened for verdict in chat.verdicts], request.runtime)
        return self._returned(result, screened)

    def _screen(self, chats: Sequence[Sequence[BaseMessage]]) -> list[ModelInput]:
        return screen(self.guard.guard, chats, artifacts=self.artifacts)

    async def _ascreen(self, chats: Sequence[Sequence[BaseMessage]]) -> list[ModelInput]:
        return await ascreen(self.guard.guard, chats, artifacts=self.artifacts)

    @property
    def _is_enforced(self) -> bool:
        return self._rules.policy.mode == "enforce"

    @property
    def _reads_state(self) -> bool:
        # An error in a turn would leave its message without an answer, and the next turn would join it.
        return self.persist or self.on_violation == "raise"

    def _cleaned(self, state: State, runtime: Runtime[Any], *, is_first_look: bool) -> dict[str, Any] | None:
        if not self._reads_state:
            return None
        found = review(self._rules, self._screen([state[MESSAGES_KEY]])[0], is_first_look=is_first_look)
        _report(self._reported(found), runtime)
        return self._update(found)

    async def _acleaned(self, state: State, runtime: Runtime[Any], *, is_first_look: bool) -> dict[str, Any] | None:
        if not self._reads_state:
            return None
        found = review(self._rules, (await self._ascreen([state[MESSAGES_KEY]]))[0], is_first_look=is_first_look)
        await _areport(self._reported(found), runtime)
        return self._update(found)

    def _reported(self, found: Review) -> Sequence[Verdict]:
        """What a look at the state reports: what the model call will not, if there is one."""
        return found.new_verdicts if self.persist or found.violation else ()

    def _update(self, found: Review) -> dict[str, Any] | None:
        """What becomes of the state; None if nothing does."""
        if not self._is_enforced:
            return None
        # A message without an id would be added, not replaced; the model gets it sanitised all the same.
        pairs = zip(found.before, found.messages, strict=True) if self.persist else ()
        update = [new for old, new in pairs if new is not old and new.id]
        if found.violation is None or self.on_violation == "notice":
            return {MESSAGES_KEY: update} if update else None
        update.append(self._refusal(found.violation))
        # An error here would undo the update: it is raised in the next step, when the state is written.
        jump = {"jump_to": "end"} if self.on_violation == "refuse" else {}
        return {MESSAGES_KEY: update, **jump}

    def _raise_if_refused(self, messages: Sequence[BaseMessage]) -> None:
        verdict = refused(messages) if self.on_violation == "raise" and self._is_enforced else None
        if verdict is not None:
            raise UnsafeTurnError(verdict)

    def _answer(self, found: Review) -> AIMessage | None:
        """The answer in the model's place; None if the model answers."""
        self._raise_if_refused(found.before)
        if found.violation is None or self.on_violation == "notice":
            return None
        if self.on_violation == "raise":
            raise UnsafeTurnError(found.violation)
        return self._refusal(found.violation)

    def _refusal(self, violation: Verdict) -> AIMessage:
        # Plain text, also where LangChain has a content block for refusals: that one means that the provider refused
        # and makes fallbacks ask the next model, it has no "text", and not every provider takes it in a history.
        return RefusingModel.of(self._rules.policy, violation, [violation]).answer()

    def _prepared(self, request: Request, found: Review) -> Request:
        """The request with sanitised messages, the prefix and the model that is due; itself if nothing changes."""
        if not self._is_enforced:
            return request
        changes: dict[str, Any] = {}
        model = self.route_to if found.is_routed and self.route_to is not None else request.model
        count = len(found.messages) - len(request.messages)
        system, messages = found.messages[:count], found.messages[count:]
        if found.is_prefix_due and placement_of(self.placement, model) == "user":
            messages = with_prefix(messages, self._rules.policy.prefix, "user")
        elif found.is_prefix_due:
            both = with_prefix(found.messages, self._rules.policy.prefix)
            count = len(both) - len(messages)
            system, messages = both[:count], both[count:]
        if system and system[0] is not request.system_message:
            changes["system_message"] = system[0]
        if len(messages) != len(request.messages) or any(
            new is not old for new, old in zip(messages, request.messages, strict=True)
        ):
            changes["messages"] = messages
        if model is not request.model:
            changes["model"] = model
        return request.override(**changes) if changes else request

    def _returned(self, result: Result, screened: Sequence[ModelInput]) -> Result:
        return with_chats(result, screened) if self._is_enforced else result


def _report(verdicts: Sequence[Verdict], runtime: Any) -> None:
    """Report verdicts in the agent's stream and in an event; nothing if there are none."""
    write_to_stream(verdicts, runtime)
    dispatch(verdicts)


async def _areport(verdicts: Sequence[Verdict], runtime: Any) -> None:
    """`_report` in async code. On Python 3.10 that does not know its run, so only the stream gets verdicts."""
    write_to_stream(verdicts, runtime)
    await adispatch(verdicts)


def _all_messages(request: Request) -> list[BaseMessage]:
    """What the model would get, in order."""
    system: list[SystemMessage] = [request.system_message] if request.system_message else []
    return [*system, *request.messages]
