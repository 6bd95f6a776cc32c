"""For openai-agents: a filter of what models are given, and guardrails that end a run or withhold a tool's result.

Only the input filter can mask, and it alone runs before every call of a model. A guardrail looks once, at what a run
starts with or a tool returned, and can only stop it.
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

from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.content.bodies import BodyRules, ascreen_body
from guardalign_guardrails.content.chat import PlacementSetting, first_violation
from guardalign_guardrails.content.screen import Turn, ascreen, notice_for
from guardalign_guardrails.errors import SettingsError
from guardalign_guardrails.guarding.settings import GuardLike, GuardSettings
from guardalign_guardrails.verdict import event_of
from openai_guardalign.bound import Bound
from openai_guardalign.request_filter import OnVerdicts

InputFilter = Callable[[CallModelData[Any]], Awaitable[ModelInputData]]
"""What ``RunConfig.call_model_input_filter`` takes."""


def input_filter(
    guard: GuardLike = None,
    *,
    on_violation: Literal["notice", "raise"] = "notice",
    placement: PlacementSetting = "auto",
    on_verdicts: OnVerdicts | None = None,
) -> InputFilter:
    """For ``RunConfig.call_model_input_filter``: no model of a run sees what the policy blocks.

    It runs before every call of a model and covers what users said, earlier turns, and what tools and models returned.
    Images of others than the user are masked or replaced by a notice if they are blocked, and the run goes on.

    Args:
        guard: A guard, or what makes one: a policy, the path of a policy file, settings, None for the shipped policy.
        on_violation: What a blocked image of the current user turn means: ``notice`` puts a notice in the image's
            place, ``raise`` ends the run with `UnsafeContentError`. ``route`` counts as blocked. A filter cannot
            answer, so there is no ``refuse``.
        placement: Where the safety prefix goes: ``system`` for the head of the agent's instructions, ``user``, or
            ``auto`` for what the name of the agent's model calls for. A model set in ``RunConfig`` does not show here.
        on_verdicts: Called with the verdicts of each call that has images.

    Returns:
        A filter; it pickles where the guard and ``on_verdicts`` do.

    Raises:
        PolicyError: The policy file cannot be read.
        SettingsError: ``guard`` is nothing that makes a guard, or ``on_violation`` is none of the two.
    """
    if on_violation not in ("notice", "raise"):
        raise SettingsError(f"on_violation is 'notice' or 'raise' here, not {on_violation!r}: a filter cannot answer.")
    # Handoffs hand chats on as text, also in an app's own words.
    rules = BodyRules(on_violation, placement=placement, reads_text=True)
    return Bound(_filtered, GuardSettings.of(guard), rules, on_verdicts)


def image_guardrail(guard: GuardLike = None, *, name: str = "guardalign_images") -> InputGuardrail[Any]:
    """An input guardrail that ends a run, before any model is called, if an image of the user is blocked.

    The tripwire's ``output_info`` are the verdicts, without pixels. An image that is to be masked does not trip it: put
    an `input_filter` beside it.

    Args:
        guard: See `input_filter`.
        name: As traces show it.
    """
    return InputGuardrail(Bound(_check_images, GuardSettings.of(guard)), name=name, run_in_parallel=False)


def tool_guardrail(guard: GuardLike = None, *, name: str = "guardalign_tool_images") -> ToolOutputGuardrail[Any]:
    """A tool output guardrail that puts a notice in the place of a result if an image in it is blocked.

    With it the image is not in the run's history either, where an `input_filter` leaves it. It can replace no image, so
    that masks and the guard's own readings are for an `input_filter` beside it.

    Args:
        guard: See `input_filter`.
        name: As traces show it.
    """
    return ToolOutputGuardrail(Bound(_check_result, GuardSettings.of(guard)), name=name)


async def _filtered(
    settings: GuardSettings, rules: BodyRules, on_verdicts: OnVerdicts | None, data: CallModelData[Any]
) -> ModelInputData:
    given, model = data.model_data, getattr(data.agent, "model", None)
    name = model if isinstance(model, str) else getattr(model, "model", None)
    body = {"input": given.input, "instructions": given.instructions, "model": name}
    screened = await ascreen_body(settings.guard, body, "responses", rules)
    if screened.verdicts and on_verdicts is not None:
        on_verdicts(screened.verdicts)
    if screened.decision.handled_by == "error" and screened.decision.violation is not None:
        raise UnsafeContentError(screened.decision.violation)
    return ModelInputData(input=screened.body["input"], instructions=screened.body["instructions"])


async def _check_images(
    settings: GuardSettings,
    context: RunContextWrapper[Any],
    agent: Agent[Any],
    input: str | list[TResponseInputItem],  # noqa: A002  the SDK's name
) -> GuardrailFunctionOutput:
    body = {"input": ItemHelpers.input_to_new_input_list(input)}
    screened = await ascreen_body(settings.guard, body, "responses", BodyRules(reads_text=True))
    return GuardrailFunctionOutput(event_of(screened.verdicts), screened.decision.violation is not None)


async def _check_result(settings: GuardSettings, data: ToolOutputGuardrailData) -> ToolGuardrailFunctionOutput:
    call = ResponseFunctionToolCall(arguments="", call_id="", name="", type="function_call")
    item = ItemHelpers.tool_call_output_item(call, data.output)
    (screened,) = await ascreen(settings.guard, [Turn(item, "tool")])
    record, violation = event_of(screened.verdicts), first_violation(screened.verdicts)
    if violation is None:
        return ToolGuardrailFunctionOutput.allow(record)
    return ToolGuardrailFunctionOutput.reject_content(notice_for(violation), record)
