"""Models of each family with random weights, small enough to build and run in a blink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TEXT))


def mistral_with_a_window() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**TEXT, sliding_window=8))


def qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in TEXT.items() if k != "head_dim"}))


def gemma2_with_a_softcap() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(**TEXT, attn_logit_softcapping=5.0, sliding_window=8, attn_implementation="eager")
    return Gemma2ForCausalLM._from_config(config, attn_implementation="eager")


def gemma3() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(**TEXT, sliding_window=8, layer_types=None))


TEXT_MODELS: dict[str, Callable[[], Any]] = {
    "Llama": llama,
    "Mistral, sliding window": mistral_with_a_window,
    "Qwen2": qwen2,
    "Gemma 2, softcap": gemma2_with_a_softcap,
    "Gemma 3": gemma3,
}


def made(make: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Any:
    """The model, seeded, with scores large enough to matter."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(6)
    return model.to(dtype)
