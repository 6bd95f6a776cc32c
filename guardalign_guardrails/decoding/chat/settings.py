"""Settings of a generation, and their translation to transformers' own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class GenerationSettings(BaseModel):
    """Settings of a generation; None leaves a setting to the model's own ``generation_config``.

    Attributes:
        max_new_tokens: Most tokens of an answer; fewer if the context is full before.
        temperature: 0 takes the likeliest token each time.
        top_p: Nucleus: the smallest set of tokens with this probability together.
        top_k: Only the k likeliest tokens.
        repetition_penalty: Above 1 makes tokens that the text already has less likely.
        num_beams: Beams; above 1 there is nothing to stream until the end.
        seed: Makes sampling repeatable on one machine.
        stop: Texts that end an answer; they are not part of it.
        logprobs: How many of the likeliest tokens to report with each token; 0 for the token's own logprob only.
        json_schema: Answers are JSON of this schema.
        generate_kwargs: More settings of transformers' ``GenerationConfig``, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    num_beams: Annotated[int, Field(ge=1)] = 1
    seed: int | None = None
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    json_schema: Mapping[str, Any] | None = None
    generate_kwargs: Mapping[str, Any] = Field(default_factory=dict)


def generation_config(own: Any, settings: GenerationSettings, *, max_new_tokens: int, pad_token_id: int | None) -> Any:
    """Transformers' config for one generation.

    Args:
        own: The model's ``generation_config``; left as it is.
        settings: What differs.
        max_new_tokens: As many as there is room for.
        pad_token_id: Taken if the model names none.
    """
    config = copy.deepcopy(own)
    config.max_length = None
    config.max_new_tokens = max_new_tokens
    config.num_beams = settings.num_beams
    for name in ("top_p", "top_k", "repetition_penalty"):
        if (value := getattr(settings, name)) is not None:
            setattr(config, name, value)
    if settings.temperature == 0:
        # Transformers warns of settings that only sampling reads.
        config.do_sample, config.temperature, config.top_p, config.top_k = False, None, None, None
    elif settings.temperature is not None:
        config.do_sample, config.temperature = True, settings.temperature
    if config.pad_token_id is None:
        config.pad_token_id = pad_token_id
    for name, value in settings.generate_kwargs.items():
        setattr(config, name, value)
    return config
