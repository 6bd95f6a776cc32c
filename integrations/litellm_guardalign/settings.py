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
        misplaced = sorted((set(cls.model_fields) - {"on_violation"}).intersection(params))
        if misplaced:
            raise SettingsError(f"{', '.join(misplaced)}: put it below '{KEY}:' in litellm_params.")
        for name in _DISCARDING:
            if params.get(name):
                raise SettingsError(f"{name}: leave it out; with it LiteLLM would send on the images as they came.")
        modes = set(_modes(params.get("event_hook")))
        if modes != {"pre_call"}:
            raise SettingsError("mode: must be 'pre_call'; at any other time images can no longer be changed.")
        try:
            return cls.model_validate({} if value is None else value)
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, item['loc'])) or KEY}: {item['msg']}" for item in error.errors()]
            raise SettingsError("; ".join(faults)) from error

    def rules(self, *, can_refuse: bool) -> BodyRules:
        """What findings mean in a request to an API that has, or has not, a place for a refusal."""
        on_violation = "raise" if self.on_violation == "refuse" and not can_refuse else self.on_violation
        return BodyRules(on_violation, self.route_to, self.placement)


def _modes(value: Any) -> Iterable[str]:
    """The modes of a guardrail, which LiteLLM writes as a name, a list, or one of both per tag."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, Mapping):
        return (mode for each in value.values() for mode in _modes(each))
    if isinstance(value, list | tuple):
        return (mode for each in value for mode in _modes(each))
    return () if value is None else (str(getattr(value, "value", value)),)
