"""SmolLM2 with eyes: the real language model in a LLaVA, behind a small random vision tower and projector.

What it says of an image means nothing; that an image goes through, and that calibration works with image tokens in
the prompt of a real model, is what it shows.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

try:
    from transformers import CLIPImageProcessorPil as CLIPImageProcessor
except ImportError:
    from transformers import CLIPImageProcessor

SIDE, PATCH = 56, 14
IMAGE_TOKENS = (SIDE // PATCH) ** 2
TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}{%- else -%}
{%- for part in message.content -%}
{{- '<image>\\n' if part.type == 'image' else part.text -}}
{%- endfor -%}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}"""


def seeing(language_model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """A LLaVA around a language model, and its processor; the two given are left as they were."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    text = copy.deepcopy(language_model.config)
    text.vocab_size = len(tokenizer)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=image_token_id, image_seq_length=IMAGE_TOKENS
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    own = dict(language_model.model.state_dict())
    embeddings = own["embed_tokens.weight"]
    new = embeddings.mean(0, keepdim=True).expand(len(tokenizer) - len(embeddings), -1)
    own["embed_tokens.weight"] = torch.cat([embeddings, new])
    model.model.language_model.load_state_dict(own)
    model.tie_weights()
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    model.generation_config = copy.deepcopy(language_model.generation_config)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_convert_rgb=True
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return model, processor
