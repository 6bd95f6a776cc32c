"""LLaVA's families, and InternVL: a language model behind a tower of its own."""

from __future__ import annotations

import family_templates as templates
import family_tokenizers as tokenizers
from family_parts import CHATML_MARKS, TOWER, Family, without_head_dim, words_config


def llava(name: str) -> Family:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = tokenizers.llama(image_token="<image>")
    side = {"height": 16, "width": 16}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=templates.VICUNA,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=16, patch_size=8),
        text_config=LlamaConfig(**words_config(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=4,
    )
    return Family(name, processor, lambda: LlavaForConditionalGeneration(config))


def llava_next(name: str) -> Family:
    from transformers import (
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        MistralConfig,
    )

    tokenizer = tokenizers.llama(legacy=True, image_token="<image>")
    grid = [[16, 32], [32, 16]]
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=grid
        ),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=templates.LLAMA2,
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=16, patch_size=8),
        text_config=MistralConfig(**words_config(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=grid,
        image_seq_length=4,
    )
    return Family(name, processor, lambda: LlavaNextForConditionalGeneration(config))


def llava_onevision(name: str) -> Family:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokenizer = tokenizers.qwen(**CHATML_MARKS, image_token="<image>", video_token="<video>")
    grid, side = [[16, 16], [16, 32]], {"height": 16, "width": 16}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=grid),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=templates.CHATML_IMAGES_FIRST,
    )
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**TOWER, image_size=16, patch_size=8, vision_use_head=False),
        text_config=Qwen2Config(**without_head_dim(words_config(tokenizer))),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=grid,
    )
    return Family(name, processor, lambda: LlavaOnevisionForConditionalGeneration(config), turn_end="<|im_end|>")


def internvl(name: str) -> Family:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        InternVLVisionConfig,
        Qwen2Config,
    )

    tokenizer = tokenizers.qwen(
        **CHATML_MARKS,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    side = {"height": 16, "width": 16}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=side, crop_to_patches=True, min_patches=1, max_patches=2),
        tokenizer,
        InternVLVideoProcessor(size=side),
        image_seq_length=4,
        chat_template=templates.CHATML_CONTEXT,
    )
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**TOWER, image_size=16, patch_size=4),
        text_config=Qwen2Config(**without_head_dim(words_config(tokenizer))),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    return Family(
        name,
        processor,
        lambda: InternVLForConditionalGeneration(config),
        image="<IMG_CONTEXT>",
        turn_end="<|im_end|>",
    )
