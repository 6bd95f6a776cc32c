"""For openai-agents: what a run's models are given, and guardrails that end a run or withhold a tool's result.

Only the input filter can mask, and it alone runs before every call of a model. A guardrail looks once, at what a run
starts with, and can only stop it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrail,
    ItemHelpers,
    RunContextWrapper,
    ToolGuardrailFunctionOutput,
    ToolOutputGuardrail,
    ToolOutputGuardrailData,
    TResponseInputItem,
)
from agents.run import CallModelData, ModelInputData
from openai.types.responses import ResponseFunctionToolCall

from guardalign_guardrails import Guard, Policy, UnsafeContentError
from guardalign_guardrails.content.bodies import BodyRules, ascreen_body
from guardalign_guardrails.content.chat import Placement, first_violation
from guardalign_guardrails.content.screen import NOTICE, Turn, ascreen
from guardalign_guardrails.verdict import event_of
from openai_guardalign.request_filter import OnVerdicts

InputFilter = Callable[[CallModelData[Any]], Awaitable[ModelInputData]]
"""What ``RunConfig.call_model_input_filter`` takes."""


def input_filter(
    guard: Guard | Policy | None = None,
    *,
    on_violation: Literal["raise", "notice"] = "raise",
    placement: Placement = "system",
    on_verdicts: OnVerdicts | None = None,
) -> InputFilter:
    """For ``RunConfig.call_model_input_filter``: no model of a run sees what the policy forbids.

    It runs before every call of a model and covers what users said, earlier turns, and what tools and models returned.
    Images of others than the user are masked or replaced by a notice if they are blocked, and the run goes on.

    Args:
        guard: What checks; a policy for a guard under it, None for one under the shipped policy.
        on_violation: What a blocked image of the current user turn means: ``raise`` ends the run with
            `UnsafeContentError`, ``notice`` puts a notice in the image's place. ``route`` counts as blocked.
        placement: Where the safety prefix goes: ``system`` for the head of the agent's instructions, or ``user``.
        on_verdicts: Called with the verdicts of each call that has images.
    """
    checks, rules = _guard(guard), BodyRules(on_violation, placement=placement)

    async def guardalign_input_filter(data: CallModelData[Any]) -> ModelInputData:
        given = data.model_data
        body = {"input": given.input, "instructions": given.instructions}
        screened = await ascreen_body(checks, body, "responses", rules)
        if screened.verdicts and on_verdicts is not None:
            on_verdicts(screened.verdicts)
        if screened.decision.handled_by == "error" and screened.decision.violation is not None:
            raise UnsafeContentError(screened.decision.violation)
        return ModelInputData(input=screened.body["input"], instructions=screened.body["instructions"])

    return guardalign_input_filter


def image_guardrail(guard: Guard | Policy | None = None, *, name: str = "guardalign_images") -> InputGuardrail[Any]:
    """An input guardrail that ends a run, before any model is called, if an image of the user is blocked.

    The tripwire's ``output_info`` are the findings, without pixels. An image that is to be masked does not trip it: put
    an `input_filter` beside it.

    Args:
        guard: What checks; a policy for a guard under it, None for one under the shipped policy.
        name: As traces show it.
    """
    checks = _guard(guard)

    async def check(
        context: RunContextWrapper[Any],
        agent: Agent[Any],
        input: str | list[TResponseInputItem],  # noqa: A002  the SDK's name
    ) -> GuardrailFunctionOutput:
        screened = await ascreen_body(checks, {"input": input}, "responses")
        return GuardrailFunctionOutput(event_of(screened.verdicts), screened.decision.violation is not None)

    return InputGuardrail(check, name=name, run_in_parallel=False)


def tool_guardrail(
    guard: Guard | Policy | None = None, *, name: str = "guardalign_tool_images"
) -> ToolOutputGuardrail[Any]:
    """A tool output guardrail that puts a notice in the place of a result if an image in it is blocked.

    With it the image is not in the run's history either, where an `input_filter` leaves it.

    Args:
        guard: What checks; a policy for a guard under it, None for one under the shipped policy.
        name: As traces show it.
    """
    checks = _guard(guard)

    async def check(data: ToolOutputGuardrailData) -> ToolGuardrailFunctionOutput:
        call = ResponseFunctionToolCall(arguments="", call_id="", name="", type="function_call")
        item = ItemHelpers.tool_call_output_item(call, data.output)
        (screened,) = await ascreen(checks, [Turn(item, "tool")])
        record = event_of(screened.verdicts)
        if first_violation(screened.verdicts) is None:
            return ToolGuardrailFunctionOutput.allow(record)
        return ToolGuardrailFunctionOutput.reject_content(NOTICE, record)

    return ToolOutputGuardrail(check, name=name)


def _guard(guard: Guard | Policy | None) -> Guard:
    return guard if isinstance(guard, Guard) else Guard(guard)
