"""What a local chat model is: its fields, the weights behind them, and what caches, traces and dumps say of it.

No weights are loaded to say any of this, and none are in it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.messages import BaseMessage
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, SkipValidation, field_validator, model_validator
from typing_extensions import Self

from guardalign_guardrails.content.chat import OnViolation
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.guarding.settings import GuardSettings
from langchain_guardalign.local.call import SETTINGS, settings_of
from langchain_guardalign.local.messages import chat_of
from langchain_guardalign.local.profile import profile_of
from langchain_guardalign.local.weights import Weights, view

if TYPE_CHECKING:
    from langchain_core.language_models import ModelProfile

_OF_LOADING: Final = (
    "revision",
    "dtype",
    "device_map",
    "quantization_config",
    "trust_remote_code",
    "local_files_only",
    "model_kwargs",
)
# What code that is written for any chat model gives, and only a service needs.
_OF_SERVICES: Final = ("api_key", "base_url", "max_retries", "request_timeout", "stream_usage", "streaming", "timeout")
_SECRETS: Final = ("token", "use_auth_token")


class LocalModel(BaseChatModel):
    """The fields are explained where they are used: see `ChatGuardAlign`."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", populate_by_name=True)

    model: str = Field(validation_alias=AliasChoices("model", "model_name"))
    revision: str | None = None
    dtype: str = "auto"
    device_map: Any = None
    quantization_config: Any = Field(default=None, repr=False)
    trust_remote_code: bool = False
    local_files_only: bool = False
    model_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = Field(default=None, validation_alias=AliasChoices("max_tokens", "max_new_tokens"))
    stop: list[str] | None = Field(default=None, validation_alias=AliasChoices("stop", "stop_sequences"))
    seed: int | None = None
    repetition_penalty: float | None = None
    num_beams: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    generate_kwargs: dict[str, Any] | None = None

    calibration: CalibrationConfig | None = CalibrationConfig()
    prefix: SafetyPrefix = SafetyPrefix()
    guard: GuardSettings | None = None
    on_violation: OnViolation = "refuse"
    report: bool = False
    source: SkipValidation[CalibratedLVLM | Weights] = Field(
        default=cast("Weights", None), alias="lvlm", exclude=True, repr=False
    )

    # The view in use, and what it was made from: fields can be assigned to, and copies share it.
    _view: tuple[tuple[Any, ...], CalibratedLVLM] | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _as_the_ready_model_says(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = {name: value for name, value in values.items() if name not in _OF_SERVICES}
        lvlm = given.get("lvlm", given.get("source"))
        if isinstance(lvlm, CalibratedLVLM):
            if "model_name" not in given:
                given.setdefault("model", lvlm.name)
            given.setdefault("calibration", lvlm.calibration)
            given.setdefault("prefix", lvlm.prefix)
            given.setdefault("guard", lvlm.guard)
            given.setdefault("on_violation", lvlm.on_violation)
        return given

    @field_validator("guard", mode="before")
    @classmethod
    def _as_settings(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, dict) else GuardSettings.of(value)

    @field_validator("dtype", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return "auto" if value is None else str(value).removeprefix("torch.")

    @model_validator(mode="after")
    def _knows_what_to_load(self) -> Self:
        settings_of(GenerationSettings(), self.own_settings)
        if isinstance(self.source, CalibratedLVLM):
            fields = type(self).model_fields
            given = [
                name
                for name in _OF_LOADING
                if getattr(self, name) != fields[name].get_default(call_default_factory=True)
            ]
            if self.model != self.source.name or given:
                raise ValueError("a ready model was loaded already: give either it, or a name and how to load it")
            return self
        loading = {"name": self.model, **{name: getattr(self, name) for name in _OF_LOADING}}
        if self.source is None or self.source.arguments != loading:
            self.source = Weights(loading)
        return self

    # What it is

    @property
    def lvlm(self) -> CalibratedLVLM:
        """The model in use; the weights are loaded when it is first asked for.

        Raises:
            ModelUnavailable: It cannot be loaded.
            CalibrationError: It cannot be calibrated, or not as asked.
        """
        guard = None if self.guard is None else self.guard.guard
        key = (self.source, self.calibration, self.prefix, guard, self.on_violation)
        if self._view is None or self._view[0] != key:
            source, bare = self.source, self._profile
            base = source if isinstance(source, CalibratedLVLM) else source.load(self.calibration, self.prefix)
            self._view = key, view(base, self.calibration, self.prefix, guard, self.on_violation)
            if self.profile == bare:
                self.profile = self._profile
        return self._view[1]

    async def alvlm(self) -> CalibratedLVLM:
        """`lvlm` without blocking the event loop."""
        is_loaded = self.loaded is not None and self._view is not None
        return self.lvlm if is_loaded else await asyncio.to_thread(lambda: self.lvlm)

    @property
    def loaded(self) -> CalibratedLVLM | None:
        """The model, perhaps with other safety settings; None before it is loaded."""
        source = self.source
        # LangChain asks for the profile while it is being made.
        return source.loaded if isinstance(source, Weights) else source

    @property
    def model_name(self) -> str:
        """The model's name."""
        return self.model

    @property
    def _llm_type(self) -> str:
        return "guardalign-chat"

    @property
    def own_settings(self) -> dict[str, Any]:
        """Settings of generations by LangChain's names; None for what is not set."""
        return {name: getattr(self, name) for name in SETTINGS}

    @property
    def base_settings(self) -> GenerationSettings:
        """What counts where nothing is set."""
        return self.source.settings if isinstance(self.source, CalibratedLVLM) else GenerationSettings()

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that an answer depends on, so that a cache mixes no guarded answers with others. Loads no weights."""
        guard = None if self.guard is None else self.guard.guard
        plain = {**{name: getattr(self, name) for name in _OF_LOADING if name != "device_map"}, **self.lc_attributes}
        ready = self.source.identity if isinstance(self.source, CalibratedLVLM) else {}
        own = {
            "calibration": None if self.calibration is None else self.calibration.model_dump(mode="json"),
            "prefix": self.prefix.model_dump(mode="json"),
            "policy_fingerprint": None if guard is None else guard.policy.fingerprint,
            "encoder": None if guard is None else guard.detector.encoder.name,
            "on_violation": self.on_violation,
        }
        return {
            "model": self.model,
            **{name: ready.get(name, plain[name]) for name in _OF_LOADING if name in plain},
            **settings_of(self.base_settings, self.own_settings).model_dump(mode="json", fallback=str),
            "report": self.report,
            "guardalign": own,
        }

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # LangChain's own is made of the dump, which says nothing of a ready model or guard.
        return json.dumps([self._identifying_params, kwargs, stop], sort_keys=True, default=str)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        settings = settings_of(self.base_settings, self.own_settings)
        known = {"temperature": settings.temperature, "max_tokens": settings.max_new_tokens, **kwargs}
        params = super()._get_ls_params(stop=stop or list(settings.stop) or None, **known)
        params["ls_provider"] = "guardalign"
        return params

    @property
    def _profile(self) -> ModelProfile:
        can_fetch = self.guard is not None and self.guard.guard.fetcher is not None
        return profile_of(self.model, self.loaded, can_fetch=can_fetch)

    def _resolve_model_profile(self) -> ModelProfile | None:
        return self._profile

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """True; one made around a ready model or guard dumps as not implemented all the same."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where `langchain_core.load.load` finds the class, whatever module it is in."""
        return ["langchain_guardalign"]

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """The fields that are not JSON, as JSON, without secrets."""
        quantization = self.quantization_config
        plain = {
            "calibration": self.calibration and self.calibration.model_dump(mode="json"),
            "prefix": self.prefix.model_dump(mode="json"),
            "model_kwargs": {name: value for name, value in self.model_kwargs.items() if name not in _SECRETS},
        }
        if hasattr(quantization, "to_dict"):
            plain["quantization_config"] = quantization.to_dict()
        if self.guard is not None:
            plain["guard"] = self.guard.model_dump(mode="json", exclude_none=True)
        return plain

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """What ``dumps`` writes. A ready model or guard holds weights, which are no text."""
        is_ready = isinstance(self.source, CalibratedLVLM) or (self.guard is not None and self.guard.is_ready_guard)
        return self.to_json_not_implemented() if is_ready else super().to_json()

    def get_token_ids(self, text: str) -> list[int]:
        """A text's tokens, without any that the model puts around texts."""
        processor = self.lvlm.processor
        tokenizer = getattr(processor, "tokenizer", processor)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None, **_: Any
    ) -> int:
        """Tokens of a chat's prompt, with image tokens and the prefix; nothing is checked or generated."""
        return self.lvlm.count_tokens(
            chat_of(messages), tools=[convert_to_openai_tool(tool) for tool in tools or ()] or None
        )
