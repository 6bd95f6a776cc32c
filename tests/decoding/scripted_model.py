"""A real transformers model that writes what it is told to, token by token, so that all around it can be tested.

Attention, cache and generate are transformers' own; only the logits are replaced.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

TOOL_TEMPLATE = """{%- if tools %}{{ '<|im_start|>system\\nTools: ' + (tools | tojson) + '<|im_end|>\\n' }}{% endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) + '</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"""
"""A chat template that knows tools, in the way Hermes and Qwen write them."""


class ScriptedModel(LlamaForCausalLM):
    """Answers the n-th prompt with the n-th script, and the last one from then on.

    Attributes:
        gate: If set to an event, a forward pass of a decode step waits for it.
        started: Set by the first forward pass.
        steps: Forward passes so far.
        prompts: Token ids of each prompt it was given.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.scripts: list[list[int]] = []
        self.gate: threading.Event | None = None
        self.started = threading.Event()
        self.steps = 0
        self.prompts: list[list[int]] = []
        self._left: list[int] = []

    @classmethod
    def writing(cls, tokenizer: Any, *texts: str) -> ScriptedModel:
        """A model that writes these texts with this tokenizer, and then ends its answer."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=4096,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = cls(config).eval()
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.scripts = [
            [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts
        ]
        return model

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        """Transformers' forward pass, and the next token of the script."""
        if input_ids.shape[1] > 1:
            self._left = list(self.scripts[min(len(self.prompts), len(self.scripts) - 1)])
            self.prompts.append(input_ids[0].tolist())
        elif self.gate is not None:
            assert self.gate.wait(20), "nobody opened the gate"
        self.steps += 1
        self.started.set()
        out = super().forward(input_ids=input_ids, **kwargs)
        token = self._left.pop(0) if self._left else self.config.eos_token_id
        out.logits = torch.zeros_like(out.logits)
        out.logits[:, -1, token] = 50.0
        return out
