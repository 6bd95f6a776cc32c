"""Fixtures for tests of the LlamaIndex integration."""

from __future__ import annotations

import pytest
import torch
from families import family
from llama_seen import Seen

from guardalign_guardrails import Guard
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.testing.colours import colour_guard


@pytest.fixture
def guard(cache_dir) -> Guard:
    return colour_guard(cache_dir)


@pytest.fixture
def with_tools(smollm2):
    """SmolLM2's tokenizer with a chat template that knows tools."""
    from scripted_model import TOOL_TEMPLATE

    tokenizer = smollm2.processor
    own = tokenizer.chat_template
    tokenizer.chat_template = TOOL_TEMPLATE
    yield tokenizer
    tokenizer.chat_template = own


@pytest.fixture
def small_vlm(monkeypatch):
    """Makes vision-language models with random weights; their processor's images are in ``small_vlm.seen``."""
    return SmallVLM(monkeypatch)


class SmallVLM:
    """Small models that take images; all share weights and processor.

    Attributes:
        seen: The images that reached the processor.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._family = family("Qwen3-VL")
        self.seen = Seen(monkeypatch, type(self._family.processor))

    def __call__(self, **settings) -> CalibratedLVLM:
        short = GenerationSettings(temperature=0, max_new_tokens=4)
        return CalibratedLVLM(
            self._family.model(), self._family.processor, settings=short, context_window=8192, **settings
        )

    def writing(self, *texts: str, **settings) -> CalibratedLVLM:
        """One that answers the n-th prompt with the n-th text, and the last one from then on."""
        tokenizer = self._family.processor.tokenizer
        scripts = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts]
        lvlm = CalibratedLVLM(self._family.make().eval(), self._family.processor, context_window=8192, **settings)
        lvlm.model.generation_config.eos_token_id = tokenizer.eos_token_id
        left: list[int] = []

        def write(model, args, given, out):
            if out.logits.shape[1] > 1 or not left:
                left[:] = scripts.pop(0) if len(scripts) > 1 else scripts[0]
            out.logits = torch.zeros_like(out.logits)
            out.logits[:, -1, left.pop(0)] = 50.0
            return out

        lvlm.model.register_forward_hook(write, with_kwargs=True)
        return lvlm
