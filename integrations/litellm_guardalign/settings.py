"""What is set in the proxy's config, checked at its start.

LiteLLM skips a guardrail whose constructor raises a ``ValueError`` or ``TypeError`` and serves without it, so every
fault found here is a `SettingsError`, which keeps the proxy from starting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from guardalign_guardrails import Guard, Policy
from guardalign_guardrails.content.bodies import BodyRules
from guardalign_guardrails.content.chat import OnViolation, Placement
from guardalign_guardrails.errors import SettingsError
from guardalign_guardrails.guarding.settings import GuardSettings

KEY: Final = "guardalign"
"""Where in a guardrail's ``litellm_params`` the settings are; beside them LiteLLM has keys of its own, with the same
names among them."""

# With either of them LiteLLM throws away what a guardrail changed.
_DISCARDING: Final = ("run_in_parallel", "scan_raw_request")


class GuardrailSettings(BaseModel):
    """The mapping under ``guardalign``.

    Attributes:
        policy: Policy file; None for the policy that ships with the package.
        encoder: Encoder name.
        profile: Calibration profile; None for the one that fits among the user's and the shipped ones.
        cache_dir: Folder for anchor features; None for the user's cache folder.
        on_violation: What a blocked image of the current user turn means: ``raise`` answers with status 400, ``refuse``
            with the policy's refusal as if a model had said it, ``notice`` lets the model answer with a notice in the
            image's place.
        route_to: Model of the proxy that answers requests whose severest action is ``route``; None to block them.
        placement: Where the safety prefix goes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Path | None = None
    encoder: str = "offline"
    profile: Path | None = None
    cache_dir: Path | None = None
    on_violation: OnViolation = "raise"
    route_to: str | None = None
    placement: Placement = "system"

    @classmethod
    def read(cls, value: object, params: Mapping[str, object]) -> GuardrailSettings:
        """The settings in a guardrail's ``litellm_params``.

        Args:
            value: What stands under ``guardalign``; None if nothing does.
            params: Everything else that LiteLLM hands on.

        Raises:
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

    def guard(self) -> Guard:
        """The guard, loaded; equal settings share one.

        Raises:
            GuardAlignError: The policy cannot be read, or the guard cannot work.
        """
        policy = Policy.default() if self.policy is None else Policy.load(self.policy)
        guard = GuardSettings(policy=policy, encoder=self.encoder, profile=self.profile, cache_dir=self.cache_dir).guard
        guard.prepare()
        return guard

    def rules(self, *, can_refuse: bool) -> BodyRules:
        """What becomes of a request to an API that has, or has not, a place for a refusal."""
        on_violation = "raise" if self.on_violation == "refuse" and not can_refuse else self.on_violation
        return BodyRules(on_violation, self.route_to is not None, self.placement)


def _modes(value: Any) -> Iterable[str]:
    """The times at which a guardrail runs, however LiteLLM writes them: a name, a list, or one of both per tag."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, Mapping):
        return (mode for each in value.values() for mode in _modes(each))
    if isinstance(value, list | tuple):
        return (mode for each in value for mode in _modes(each))
    return () if value is None else (str(getattr(value, "value", value)),)
