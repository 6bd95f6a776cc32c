"""What makes a guard, as data: every LlamaIndex component of this package has one such field.

Components are dumped, hashed by pipelines, copied, and pickled to other processes. All of that sees the settings; the
guard itself, with its encoder and caches, is made from them when it is first needed, and is left behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PrivateAttr, field_serializer
from typing_extensions import Self

from guardalign_guardrails import Guard, Policy
from guardalign_guardrails.guarding.settings import guard_for

StoredPath = Annotated[Path, PlainSerializer(str, return_type=str)]
"""A path that is dumped as text."""


class GuardSettings(BaseModel):
    """What makes a guard.

    Attributes:
        policy: What is unsafe and what to do; the policy that ships with the package by default.
        encoder: Encoder name.
        profile: Calibration profile; None for the one that fits among the user's and the shipped ones.
        cache_dir: Folder for anchor features; None for the user's cache folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Policy = Field(default_factory=Policy.default)
    encoder: str = "offline"
    profile: StoredPath | None = None
    cache_dir: StoredPath | None = None

    _ready: Guard | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, value: object) -> object:
        """Settings from what components accept in their place: a ready guard, or a policy; anything else as it is.

        A ready guard is used as it is, and dumped as its policy and its encoder's name.
        """
        if isinstance(value, Guard):
            settings = cls(policy=value.policy, encoder=value.detector.encoder.name)
            settings._ready = value
            return settings
        return cls(policy=value) if isinstance(value, Policy) else value

    @property
    def guard(self) -> Guard:
        """The guard. Equal settings share one, unless they were made from a ready guard."""
        if self._ready is None:
            self._ready = guard_for(self.policy.to_json(), self.encoder, self.profile, self.cache_dir)
        return self._ready

    def prepare(self) -> None:
        """Load encoder, anchors and profile now, so that what is missing shows before there is work to lose.

        Raises:
            EncoderUnavailable: The encoder's packages or weights are missing.
            ProfileMissing: No calibration profile fits and the policy needs one.
        """
        self.guard.prepare()

    @field_serializer("policy")
    def _dump_policy(self, policy: Policy) -> dict[str, Any]:
        return policy.to_dict()

    def __reduce__(self) -> tuple[Any, ...]:
        # LlamaIndex leaves out what cannot be pickled, and another process would go on with another policy.
        return type(self).model_validate, (self.model_dump(mode="json"),)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self


GuardField = Annotated[GuardSettings, BeforeValidator(GuardSettings.of)]
"""For a component's field: settings, a ready guard or a policy."""


def settings_of(guard: Guard | Policy | GuardSettings | None) -> GuardSettings:
    """Settings from what a caller gives; None stands for the policy that ships with the package."""
    return GuardSettings() if guard is None else cast("GuardSettings", GuardSettings.of(guard))
