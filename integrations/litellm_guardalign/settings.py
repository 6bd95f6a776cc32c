"""The guardrail's settings in the proxy's config, checked when it starts.

LiteLLM skips a guardrail whose constructor raises a ``ValueError`` or ``TypeError`` and serves without it, so every
fault found here is a `GuardAlignError`, which keeps the proxy from starting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from guardalign_guardrails.content.bodies import BodyRules
from guardalign_guardrails.content.chat import OnViolation, PlacementSetting
from guardalign_guardrails.errors import SettingsError
from guardalign_guardrails.guarding.settings import GuardSettings

KEY: Final = "guardalign"
"""Key of the settings in a guardrail's ``litellm_params``, where LiteLLM has keys of its own, some with the same
names."""

# With either of them LiteLLM throws away what a guardrail changed.
_DISCARDING: Final = ("run_in_parallel", "scan_raw_request")


class GuardrailSettings(GuardSettings):
    """The mapping under ``guardalign``: what makes a guard (`GuardSettings`), and what its findings mean.

    Attributes:
        on_violation: What a blocked image of the current user turn means: ``refuse`` answers with the policy's refusal
            as if a model had said it, or with status 400 where LiteLLM has no place for one; ``raise`` answers with
            status 400; ``notice`` lets the model answer with a notice in the image's place.
        route_to: Model of the proxy that answers requests whose severest action is ``route``; None to block them.
        placement: Where the safety prefix goes; ``auto`` follows the name of the model that answers.
    """

    on_violation: OnViolation = "refuse"
    route_to: str | None = None
    placement: PlacementSetting = "auto"

    @classmethod
    def read(cls, value: object, params: Mapping[str, object]) -> GuardrailSettings:
        """The settings in a guardrail's ``litellm_params``.

        Args:
            value: What stands under ``guardalign``; None if nothing does.
            params: Everything else that LiteLLM hands on.

        Raises:
            PolicyError: The policy file cannot be read.
            SettingsError: Something is misspelt, misplaced, or would leave requests unguarded.
        """
        if faults := [*cls.misplaced(params), *faults_of(params)]:
            raise SettingsError("; ".join(faults))
        try:
            return cls.model_validate({} if value is None else value)
        except ValidationError as error:
            invalid = [f"{'.'.join(map(str, item['loc'])) or KEY}: {item['msg']}" for item in error.errors()]
            raise SettingsError("; ".join(invalid)) from error

    @classmethod
    def misplaced(cls, params: Mapping[str, object]) -> list[str]:
        """The fault of settings that stand beside ``guardalign`` instead of below it, if there are any."""
        names = sorted((set(cls.model_fields) - {"on_violation"}).intersection(params))
        return [f"{', '.join(names)}: put it below '{KEY}:' in litellm_params."] if names else []

    def rules(self, *, can_refuse: bool) -> BodyRules:
        """What findings mean in a request to an API that has, or has not, a place for a refusal."""
        on_violation = "raise" if self.on_violation == "refuse" and not can_refuse else self.on_violation
        return BodyRules(on_violation, self.route_to, self.placement)


def faults_of(params: Mapping[str, object]) -> list[str]:
    """Faults in LiteLLM's own keys with which no request, or not every kind of request, would be guarded.

    Args:
        params: What LiteLLM hands to a guardrail, the mode under ``event_hook``.
    """
    faults = [
        f"{name}: leave it out; with it LiteLLM would send on the images as they came."
        for name in _DISCARDING
        if params.get(name)
    ]
    if not is_of_every_stream(params.get("stream_scope")):
        faults.append("stream_scope: leave it out; it would leave either streams or whole answers unguarded.")
    if set(_modes(params.get("event_hook"))) != {"pre_call"}:
        faults.append("mode: must be 'pre_call'; at any other time images can no longer be changed.")
    return faults


def gaps_of(params: Mapping[str, object]) -> list[str]:
    """What lets requests pass unguarded that do not ask for the guardrail; meant so by some, overlooked by most.

    Args:
        params: What LiteLLM hands to a guardrail, the mode under ``event_hook``.
    """
    gaps = []
    if params.get("default_on") is not True:
        gaps.append("default_on: is not true; only requests, keys, teams and models that name the guardrail have it.")
    mode = params.get("event_hook")
    mode = mode.model_dump() if isinstance(mode, BaseModel) else mode
    if isinstance(mode, Mapping) and not mode.get("default"):
        gaps.append("mode: has tags and no default; requests without these tags, which clients give, are not guarded.")
    return gaps


def is_of_every_stream(stream_scope: object) -> bool:
    """Whether a guardrail's ``stream_scope`` leaves out neither streams nor whole answers."""
    if isinstance(stream_scope, Mapping):
        return all(is_of_every_stream(each) for each in stream_scope.values())
    return stream_scope is None or str(stream_scope).lower() in ("", "both")


def _modes(value: Any) -> Iterable[str]:
    """The modes of a guardrail, which LiteLLM writes as a name, a list, or one of both per tag."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, Mapping):
        return (mode for each in value.values() for mode in _modes(each))
    if isinstance(value, list | tuple):
        return (mode for each in value for mode in _modes(each))
    return () if value is None else (str(getattr(value, "value", value)),)
