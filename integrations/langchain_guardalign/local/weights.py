"""What a local chat model is loaded from, loaded once and when it is first needed.

Copies of a chat model, such as ``configurable_fields`` makes for each call, share it; with other safety settings they
are other views of the same weights, and queue for them together.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any

from guardalign_guardrails import Guard
from guardalign_guardrails.content.chat import OnViolation
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM


class Weights:
    """A model that is loaded when it is first asked for.

    Args:
        arguments: Of `CalibratedLVLM.from_pretrained`, safety settings aside.

    Attributes:
        arguments: The same.
        loaded: The model; None as long as nobody asked.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = dict(arguments)
        self.loaded: CalibratedLVLM | None = None
        self._loading = threading.Lock()

    def load(self, calibration: CalibrationConfig | None, prefix: SafetyPrefix) -> CalibratedLVLM:
        """The model, loaded by the first caller with these settings, which are put to its self-test.

        Raises:
            ModelUnavailable: It cannot be loaded.
            CalibrationError: It cannot be calibrated.
        """
        with self._loading:
            if self.loaded is None:
                self.loaded = CalibratedLVLM.from_pretrained(**self.arguments, calibration=calibration, prefix=prefix)
            return self.loaded

    def __deepcopy__(self, memo: dict[int, Any]) -> Weights:
        """Itself: there is one copy of the weights."""
        return self


def view(
    lvlm: CalibratedLVLM,
    calibration: CalibrationConfig | None,
    prefix: SafetyPrefix,
    guard: Guard | None,
    on_violation: OnViolation,
) -> CalibratedLVLM:
    """A model with these safety settings; itself if they are its own.

    Raises:
        CalibrationError: The model has not the layers or heads asked for.
    """
    wanted = calibration if calibration is not None and calibration.gamma > 0 else None
    is_calibrated_so = (wanted, prefix) == (lvlm.calibration, lvlm.prefix)
    if is_calibrated_so and guard is lvlm.guard and on_violation == lvlm.on_violation:
        return lvlm
    other = copy.copy(lvlm) if is_calibrated_so else lvlm.variant(calibration=wanted, prefix=prefix)
    other.guard, other.on_violation = guard, on_violation
    return other
