"""Settings of the safety prefix and of attention calibration. Data only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

Fraction = Annotated[float, Field(ge=0, le=1)]


Placement = Literal["system", "user", "response"]
"""Where the safety prefix goes: to the head of the system message, before the text of the user turn that is answered,
or to the start of the answer. Text before it cannot attend to it: at the start of the answer, only the answer can."""


class SafetyPrefix(BaseModel):
    """An instruction that keeps a model safe.

    Attributes:
        text: The prefix; blank for none.
        placement: Where it goes.
        when: ``always``, as in the paper, which adds it to every chat; ``policy`` adds it when the guard's policy says
            so (its ``prefix_when``), and always where there is no guard.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = "As an AI assistant, I must refuse to help with anything that is dangerous, illegal, or unethical."
    placement: Placement = "user"
    when: Literal["always", "policy"] = "always"


class CalibrationConfig(BaseModel):
    """Settings of attention calibration (GuardAlign eqs. 12-14).

    Attributes:
        gamma: The largest strength that a ``target`` may take, at least 0; the strength itself without one. 0 switches
            calibration off.
        layers: The band of decoder layers, as fractions of the depth: layer ``l`` of ``n`` is in it if
            ``low * n <= l < high * n``.
        layer_indices: The layers themselves instead of a band.
        heads: Query heads; None for all.
        queries: Whose attention is changed: tokens of the instruction, or those and all generated tokens. Only
            generated tokens can attend to a prefix at the start of the answer.
        form: ``gate`` adds ``gamma * relu(z)`` to a pre-softmax score z, which is eq. 13 with M the indicator of
            positive pairs. ``paper`` takes eq. 14 literally: M = relu(q . k) makes it
            ``gamma * sqrt(d) * relu(z)^2``, for which only a gamma of about 0.001 is of use.
        target: Amplify just enough that instruction tokens give the prefix this share of their attention in each chosen
            layer; ``shallow`` for the share it has in the layers before the first chosen one, which undoes the decay
            with depth. The same gamma is a very different dose on different models, because the share of positive
            scores differs; a share of attention is not. None for a fixed gamma, as in the paper.

    The defaults are what `guardalign evaluate refusal` found best (docs/decoding/evaluation.md). The paper's mode is
    `CalibrationConfig.fixed`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gamma: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    layers: tuple[Fraction, Fraction] = (1 / 3, 2 / 3)
    layer_indices: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    heads: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    queries: Literal["instruction", "instruction+generated"] = "instruction"
    form: Literal["gate", "paper"] = "gate"
    target: Fraction | Literal["shallow"] | None = 0.3

    @classmethod
    def fixed(cls, gamma: float, **settings: Any) -> Self:
        """A fixed strength, for instruction and generated tokens, as in the paper.

        Args:
            gamma: The strength.
            **settings: Other settings than ``target``; ``queries`` for instruction tokens alone.

        Raises:
            ValidationError: A setting is out of range.
        """
        return cls(gamma=gamma, target=None, **{"queries": "instruction+generated", **settings})

    @model_serializer(mode="wrap")
    def _keeps_no_target(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        dumped: dict[str, Any] = dump(self)
        # No target is a setting, not a missing one: without it the dump would be read as the default target.
        if info.exclude_none and self.target is None:
            dumped["target"] = None
        return dumped

    @model_validator(mode="after")
    def _says_what_it_can_mean(self) -> CalibrationConfig:
        if self.layers[0] >= self.layers[1]:
            raise ValueError("layers is (low, high) with low below high")
        if self.layer_indices is not None and not self.layer_indices:
            raise ValueError("layer_indices must name a layer; set gamma to 0 to switch calibration off")
        if self.heads is not None and not self.heads:
            raise ValueError("heads must name a head; set gamma to 0 to switch calibration off")
        return self

    def chosen(self, depth: int) -> tuple[int, ...]:
        """The chosen layers of a model.

        Args:
            depth: Number of its decoder layers.

        Raises:
            ValueError: There is none, or one named is not there.
        """
        if self.layer_indices is not None:
            if max(self.layer_indices) >= depth:
                raise ValueError(f"layer {max(self.layer_indices)} is not there: the model has {depth} layers")
            return tuple(sorted(set(self.layer_indices)))
        low, high = self.layers
        found = tuple(index for index in range(depth) if low * depth <= index < high * depth)
        if not found:
            raise ValueError(f"no layer of {depth} lies between {low:.2f} and {high:.2f} of the depth")
        return found
