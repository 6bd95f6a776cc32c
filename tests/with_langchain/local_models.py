"""Real models with a real processor that write what a script says, so that all around their words can be tested.

Attention, cache, images and generate are transformers' own; only the logits are replaced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from families import family
from tiny_models import made

from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM

Script = Callable[[str], Sequence[str]]
"""From a prompt to answers, dearest first: where a grammar forbids one, the model writes the next."""


class Scripted:
    """A forward hook that makes a model write a script.

    Attributes:
        gate: If set to an event, decode steps wait for it.
        begun: Set when a generation begins.
        prompts: Texts of all prompts, in order.
        rows: Number of prompts of each generation.
        images: What the vision tower was given for each generation; None for one without images.
        steps: Decode steps so far.
    """

    def __init__(self, model: Any, tokenizer: Any, script: Script) -> None:
        self._tokenizer, self._script = tokenizer, script
        self._end = tokenizer.eos_token_id
        self._wanted: list[list[list[int]]] = []
        self._written: list[list[int]] = []
        self.gate: threading.Event | None = None
        self.begun = threading.Event()
        self.prompts: list[str] = []
        self.rows: list[int] = []
        self.images: list[Any] = []
        self.steps = 0
        self._seen: Any = None
        for name in ("visual", "vision_tower"):
            if hasattr(model.model, name):
                getattr(model.model, name).register_forward_pre_hook(self._see, with_kwargs=True)
        model.register_forward_hook(self._write, with_kwargs=True)

    def _see(self, tower: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._seen = next(value for value in [*args, *kwargs.values()] if isinstance(value, torch.Tensor))

    def _write(self, model: Any, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
        ids = kwargs["input_ids"]
        if ids.shape[1] > 1:
            self._begin(ids)
        else:
            self.steps += 1
            if self.gate is not None:
                assert self.gate.wait(20), "nobody opened the gate"
            for row, token in zip(self._written, ids[:, -1].tolist(), strict=True):
                row.append(token)
        # Where nothing else may be written, words are better than marks.
        out.logits = torch.zeros_like(out.logits)
        for row, (wanted, written) in enumerate(zip(self._wanted, self._written, strict=True)):
            for rank, answer in enumerate(wanted):
                if answer[: len(written)] == written:
                    token = answer[len(written)] if len(written) < len(answer) else self._end
                    out.logits[row, -1, token] = torch.maximum(
                        out.logits[row, -1, token], torch.tensor(90.0 - 20 * rank)
                    )
        return out

    def _begin(self, ids: torch.Tensor) -> None:
        self.begun.set()
        texts = [self._tokenizer.decode(row) for row in ids]
        self.prompts += texts
        self.rows.append(len(texts))
        self.images.append(self._seen)
        self._seen = None
        self._written = [[] for _ in texts]
        self._wanted = [
            [self._tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in self._script(text)]
            for text in texts
        ]


def scripted(script: Script | str, name: str = "Qwen3-VL", **settings: Any) -> tuple[CalibratedLVLM, Scripted]:
    """A tiny vision-language model that writes a script, and what writes it.

    Args:
        script: From prompts to answers; a text is written whatever was asked.
        name: Of the family; this one reads images, in tool results too, and knows tools.
        **settings: Of `CalibratedLVLM`.
    """
    one = family(name)
    model = made(one.make)
    hook = Scripted(model, one.tokenizer, (lambda _: [script]) if isinstance(script, str) else script)
    settings = {"name": "scripted", "context_window": 16384, "settings": GenerationSettings(temperature=0), **settings}
    return CalibratedLVLM(model, one.processor, **settings), hook
