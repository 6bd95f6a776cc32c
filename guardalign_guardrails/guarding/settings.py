"""What makes a guard, as data, and the one way in which every integration is given a guard.

Frameworks dump, hash, copy and pickle their components, and rebuild them from settings for every call and process. All
of that sees the settings. The guard itself, with its encoder and caches, is made when it is first needed, and equal
settings share one, so that weights are loaded once.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PrivateAttr, field_serializer
from typing_extensions import Self

from guardalign_guardrails.detection.encoders import Encoder, load_encoder
from guardalign_guardrails.errors import SettingsError
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.policy import Policy

StoredPath = Annotated[Path, PlainSerializer(str, return_type=str)]
"""A path that is dumped as text."""


def _policy(value: Any) -> Any:
    if value is None:
        return Policy.default()
    return Policy.load(value) if isinstance(value, Path | str) else value


class GuardSettings(BaseModel):
    """What makes a guard.

    Attributes:
        policy: What is unsafe and what to do, or the path of a policy file, which is read at once; the policy that
            ships with the package by default.
        encoder: Encoder name.
        profile: Reference profile; None for the one that fits among the user's and the shipped ones.
        cache_dir: Folder for anchor features; None for the user's cache folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Annotated[Policy, BeforeValidator(_policy)] = Field(default_factory=Policy.default)
    encoder: str = "offline"
    profile: StoredPath | None = None
    cache_dir: StoredPath | None = None

    _ready: Guard | None = PrivateAttr(default=None)
    _is_given: bool = PrivateAttr(default=False)

    @classmethod
    def of(cls, value: GuardLike) -> GuardSettings:
        """Settings from what a component is given.

        Args:
            value: A ready guard, which is used as it is and dumped as its policy and its encoder's name; a policy or
                the path of a policy file; settings; None for the policy that ships with the package.

        Raises:
            PolicyError: The policy file cannot be read.
            SettingsError: It is none of these.
        """
        if isinstance(value, GuardSettings):
            return value
        if isinstance(value, Guard):
            settings = cls(policy=value.policy, encoder=value.detector.encoder.name)
            settings._ready, settings._is_given = value, True
            return settings
        if value is None or isinstance(value, Policy | Path | str):
            return cls(policy=_policy(value))
        raise SettingsError(
            "A guard is given as a Guard, a Policy, the path of a policy file, GuardSettings or None, "
            f"not as {type(value).__name__}."
        )

    @property
    def is_ready_guard(self) -> bool:
        """Whether they were made from a ready guard, of which a dump cannot hold everything."""
        return self._is_given

    @property
    def guard(self) -> Guard:
        """The guard. Equal settings share one, unless they were made from a ready guard."""
        if self._ready is None:
            self._ready = _shared(self.policy.to_json(), self.encoder, self.profile, self.cache_dir)
        return self._ready

    def prepare(self) -> None:
        """Load encoder, anchors and profile now, so that what is missing shows before there is work to lose.

        Raises:
            EncoderUnavailable: The encoder's packages or weights are missing.
            ProfileMissing: No reference profile fits and the policy needs one.
        """
        self.guard.prepare()

    @field_serializer("policy")
    def _dump_policy(self, policy: Policy) -> dict[str, Any]:
        return policy.to_dict()

    def __reduce__(self) -> tuple[Any, ...]:
        # A given guard is pickled too, or raises: settings with another guard would be settings without this one.
        if self._ready is not None and self._is_given:
            return GuardSettings.of, (self._ready,)
        return type(self).model_validate, (self.model_dump(mode="json"),)

    def __eq__(self, other: object) -> bool:
        # A guard that was made of them meanwhile makes no difference; one that was given does.
        if not isinstance(other, GuardSettings):
            return NotImplemented
        own = self._ready if self._is_given else None
        theirs = other._ready if other._is_given else None
        return own is theirs and self.__dict__ == other.__dict__

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        given = {name: getattr(self, name) for name in ("encoder", "profile", "cache_dir")}
        return [("policy", self.policy.name), *((name, value) for name, value in given.items() if value is not None)]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self


GuardLike: TypeAlias = Guard | Policy | GuardSettings | Path | str | None
"""What a component takes for its guard; see `GuardSettings.of`."""


def _settings(value: Any) -> Any:
    return value if isinstance(value, dict) else GuardSettings.of(value)


def _settings_or_none(value: Any) -> Any:
    return None if value is None else _settings(value)


GuardField = Annotated[GuardSettings, BeforeValidator(_settings)]
"""For a pydantic component's field: what `GuardSettings.of` takes, or dumped settings."""

OptionalGuardField = Annotated[GuardSettings | None, BeforeValidator(_settings_or_none)]
"""The same for a component that may have no guard: None is no guard."""


@lru_cache(maxsize=8)
def _shared(policy: str, encoder: str, profile: Path | None, cache_dir: Path | None) -> Guard:
    return Guard(Policy.from_yaml(policy), _encoder(encoder), profile=profile, cache_dir=cache_dir)


@lru_cache(maxsize=2)
def _encoder(name: str) -> Encoder:
    return load_encoder(name)
