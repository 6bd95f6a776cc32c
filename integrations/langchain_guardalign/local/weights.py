"""The weights of a local chat model, loaded once and when they are first needed.

Copies of a chat model, such as ``configurable_fields`` makes for each call, share them; with other safety settings they
are other views of the same weights, and queue for them together.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guardalign_guardrails import Guard
from guardalign_guardrails.content.chat import OnViolation
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM


class Weights:
    """A model that is ready, or loaded when it is first needed. A pickle has none of the weights.

    Args:
        arguments: Of `CalibratedLVLM.from_pretrained`, safety settings aside; None for a ready model.
        ready: The ready model.

    Attributes:
        arguments: The same.
        loaded: The model, perhaps with other safety settings; None before it is loaded.
    """

    def __init__(self, arguments: Mapping[str, Any] | None, ready: CalibratedLVLM | None = None) -> None:
        self.arguments = None if arguments is None else dict(arguments)
        self.loaded = ready
        self._loading = threading.Lock()

    @property
    def ready(self) -> CalibratedLVLM | None:
        """The model that was given; None if it is to be loaded."""
        return self.loaded if self.arguments is None else None

    @property
    def settings(self) -> GenerationSettings:
        """Settings of generations where none are given."""
        return GenerationSettings() if self.ready is None else self.ready.settings

    def load(self, calibration: CalibrationConfig | None, prefix: SafetyPrefix) -> CalibratedLVLM:
        """The model, loaded by the first caller with these settings, which its self-test checks.

        Raises:
            ModelUnavailable: It cannot be loaded.
            CalibrationError: It cannot be calibrated.
        """
        with self._loading:
            if self.loaded is None:
                arguments = self.arguments or {}
                self.loaded = CalibratedLVLM.from_pretrained(**arguments, calibration=calibration, prefix=prefix)
            return self.loaded

    def __reduce__(self) -> tuple[Any, ...]:
        # A ready model pickles if it was loaded by name; else it raises.
        return type(self), (self.arguments, self.ready)

    def __deepcopy__(self, memo: dict[int, Any]) -> Weights:
        """Itself: there is one copy of the weights."""
        return self


@dataclass(frozen=True, eq=False)
class WeightsView:
    """Weights with safety settings. It is made again where it was pickled, and is the same in a copy.

    Attributes:
        key: The weights and the settings.
        lvlm: The model with them.
    """

    key: tuple[Any, ...]
    lvlm: CalibratedLVLM

    @classmethod
    def of(
        cls,
        weights: Weights,
        calibration: CalibrationConfig | None,
        prefix: SafetyPrefix,
        guard: Guard | None,
        on_violation: OnViolation,
    ) -> WeightsView:
        """The model with these settings; itself if they are its own.

        Raises:
            ModelUnavailable: It cannot be loaded.
            CalibrationError: It has not the layers or heads asked for.
        """
        key, lvlm = (weights, calibration, prefix, guard, on_violation), weights.load(calibration, prefix)
        wanted = calibration if calibration is not None and calibration.gamma > 0 else None
        is_calibrated_so = (wanted, prefix) == (lvlm.calibration, lvlm.prefix)
        if is_calibrated_so and guard is lvlm.guard and on_violation == lvlm.on_violation:
            return cls(key, lvlm)
        other = copy.copy(lvlm) if is_calibrated_so else lvlm.variant(calibration=wanted, prefix=prefix)
        other.guard, other.on_violation = guard, on_violation
        return cls(key, other)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightsView:
        return self
