"""Every family of models that calibrated decoding knows: a tiny model with random weights and a real processor each.

All is built here, without a download: tokenizers from a few sentences, image processors with images of a few tokens,
chat templates that treat a chat as the family's own does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import family_templates as templates
import family_tokenizers as tokenizers
from family_llava import internvl, llava, llava_next, llava_onevision
from family_parts import CHATML_MARKS, TOWER, Family, without_head_dim, words_config

_QWEN_VISION: Final = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
_LLAMA3_MARKS: Final = {
    "header_start_token": "<|start_header_id|>",
    "header_end_token": "<|end_header_id|>",
    "eot_token": "<|eot_id|>",
    "python_token": "<|python_tag|>",
}
_QWEN_MARKS: Final = {
    **CHATML_MARKS,
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


@cache
def family(name: str) -> Family:
    """A family by its name; built once, so change nothing of it."""
    return {**VISION, **WORDS}[name](name)


def _mllama(name: str) -> Family:
    from transformers import (
        MllamaConfig,
        MllamaForConditionalGeneration,
        MllamaImageProcessor,
        MllamaProcessor,
    )
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    tokenizer = tokenizers.byte_level(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        adds_bos=True,
        **_LLAMA3_MARKS,
        image_token="<|image|>",
    )
    processor = MllamaProcessor(
        MllamaImageProcessor(size={"height": 16, "width": 16}, max_image_tiles=2),
        tokenizer,
        chat_template=templates.LLAMA3_VISION,
    )
    text = without_head_dim(words_config(tokenizer, num_hidden_layers=3))
    # Its word embeddings have eight rows more than its vocabulary, and the image's is the first of them.
    text["vocab_size"] = tokenizer.image_token_id
    config = MllamaConfig(
        vision_config=MllamaVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_global_layers=1,
            attention_heads=2,
            image_size=16,
            patch_size=8,
            max_num_tiles=2,
            vision_output_dim=32,
            intermediate_layers_indices=[0],
            supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
        ),
        text_config=MllamaTextConfig(**text, cross_attention_layers=[1]),
        image_token_index=tokenizer.image_token_id,
    )
    return Family(
        name,
        processor,
        lambda: MllamaForConditionalGeneration(config),
        image="<|image|>",
        is_expanded=False,
        turn_end="<|eot_id|>",
    )


def _qwen_vl(name: str) -> Family:
    import transformers

    kind = {"Qwen2-VL": "Qwen2VL", "Qwen2.5-VL": "Qwen2_5_VL", "Qwen3-VL": "Qwen3VL"}[name]
    tokenizer = tokenizers.qwen(**_QWEN_MARKS)
    sizes = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 512}}
    is_third = name == "Qwen3-VL"
    video = transformers.Qwen3VLVideoProcessor if is_third else transformers.Qwen2VLVideoProcessor
    processor = getattr(transformers, f"{kind}Processor")(
        transformers.Qwen2VLImageProcessor(**sizes),
        tokenizer,
        video(**sizes),
        chat_template=templates.QWEN3 if is_third else templates.QWEN_VL,
    )
    sizes = {
        "Qwen2-VL": {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        "Qwen2.5-VL": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [0],
        },
        "Qwen3-VL": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    }[name]
    text = words_config(
        tokenizer, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    )
    config = getattr(transformers, f"{kind}Config")(
        text_config=text if is_third else without_head_dim(text),
        vision_config={**_QWEN_VISION, **sizes},
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
    )
    make = getattr(transformers, f"{kind}ForConditionalGeneration")
    return Family(name, processor, lambda: make(config), image="<|image_pad|>", turn_end="<|im_end|>")


def _idefics(name: str) -> Family:
    import transformers
    from transformers.models.smolvlm import processing_smolvlm

    is_third = name == "Idefics3"
    kind = "Idefics3" if is_third else "SmolVLM"
    start = "<|begin_of_text|>" if is_third else "<|im_start|>"
    tokenizer = tokenizers.byte_level(
        start,
        "<|end_of_text|>",
        "<|pad|>",
        adds_bos=is_third,
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
        first_tile_token="<row_1_col_1>",
        second_tile_token="<row_1_col_2>",
    )
    # Spells the number of a video's frames; the package that it comes from is not among the tests' requirements.
    processing_smolvlm.num2words = processing_smolvlm.num2words or str
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
    more = () if is_third else (transformers.SmolVLMVideoProcessor(**sizes),)
    processor = getattr(transformers, f"{kind}Processor")(
        getattr(transformers, f"{kind}ImageProcessor")(**sizes),
        tokenizer,
        *more,
        image_seq_len=4,
        chat_template=templates.IDEFICS.replace("START", f"'{start}'"),
    )
    config = getattr(transformers, f"{kind}Config")(
        text_config=transformers.LlamaConfig(**words_config(tokenizer)),
        vision_config={**TOWER, "image_size": 16, "patch_size": 4},
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    make = getattr(transformers, f"{kind}ForConditionalGeneration")
    return Family(name, processor, lambda: make(config), turn_end="<end_of_utterance>")


def _gemma3(name: str) -> Family:
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    tokenizer = tokenizers.gemma(
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
        turn_start_token="<start_of_turn>",
        turn_end_token="<end_of_turn>",
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 16, "width": 16}),
        tokenizer,
        chat_template=templates.GEMMA3,
        image_seq_length=4,
    )
    layers = ["sliding_attention", "full_attention"]
    config = Gemma3Config(
        text_config=Gemma3TextConfig(
            **words_config(tokenizer), layer_types=layers, sliding_window=24, query_pre_attn_scalar=8
        ),
        vision_config=SiglipVisionConfig(**TOWER, image_size=16, patch_size=4),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    return Family(
        name,
        processor,
        lambda: Gemma3ForConditionalGeneration(config),
        image="<image_soft_token>",
        turn_end="<end_of_turn>",
    )


def _mistral(name: str) -> Family:
    import transformers
    from transformers import MistralConfig, PixtralImageProcessor, PixtralProcessor, PixtralVisionConfig

    is_pixtral = name == "Pixtral"
    tokenizer = tokenizers.byte_level(
        "<s>",
        "</s>",
        "<pad>",
        adds_bos=True,
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
        user_start_token="[INST]",
        user_end_token="[/INST]",
        system_start_token="[SYSTEM_PROMPT]",
        system_end_token="[/SYSTEM_PROMPT]",
    )
    merge = 1 if is_pixtral else 2
    processor = PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": 16}, patch_size=8 // merge),
        tokenizer,
        patch_size=8 // merge,
        spatial_merge_size=merge,
        chat_template=templates.PIXTRAL if is_pixtral else templates.MISTRAL3,
    )
    vision = PixtralVisionConfig(**TOWER, head_dim=8, image_size=16, patch_size=8 // merge)
    text, image = MistralConfig(**words_config(tokenizer)), tokenizer.image_token_id
    settings = {"vision_config": vision, "text_config": text, "image_token_index": image, "vision_feature_layer": -1}
    if is_pixtral:
        config = transformers.LlavaConfig(**settings, vision_feature_select_strategy="full")
        return Family(name, processor, lambda: transformers.LlavaForConditionalGeneration(config), image="[IMG]")
    config = transformers.Mistral3Config(**settings, spatial_merge_size=2)
    return Family(name, processor, lambda: transformers.Mistral3ForConditionalGeneration(config), image="[IMG]")


def _words(name: str) -> Family:
    import transformers

    if name == "Llama 3":
        tokenizer = tokenizers.byte_level(
            "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", adds_bos=True, **_LLAMA3_MARKS
        )
        template, end, kind = templates.LLAMA3, "<|eot_id|>", "Llama"
    elif name == "Llama 2":
        tokenizer, template, end, kind = tokenizers.llama(), templates.LLAMA2_WORDS, "</s>", "Llama"
    elif name == "Gemma":
        tokenizer = tokenizers.gemma(turn_start_token="<start_of_turn>", turn_end_token="<end_of_turn>")
        template, end, kind = templates.GEMMA, "<end_of_turn>", "Gemma"
    else:
        tokenizer = tokenizers.qwen(**CHATML_MARKS)
        template, end, kind = templates.QWEN3, "<|im_end|>", "Qwen3"
    tokenizer.chat_template = template
    config = getattr(transformers, f"{kind}Config")(**words_config(tokenizer))
    make = getattr(transformers, f"{kind}ForCausalLM")
    return Family(name, tokenizer, lambda: make(config), takes_images=False, image="", turn_end=end)


VISION: Final[dict[str, Callable[[str], Family]]] = {
    "LLaVA-1.5": llava,
    "LLaVA-NeXT": llava_next,
    "LLaVA-OneVision": llava_onevision,
    "InternVL": internvl,
    "Mllama": _mllama,
    "Qwen2-VL": _qwen_vl,
    "Qwen2.5-VL": _qwen_vl,
    "Qwen3-VL": _qwen_vl,
    "Idefics3": _idefics,
    "SmolVLM": _idefics,
    "Gemma 3": _gemma3,
    "Pixtral": _mistral,
    "Mistral 3": _mistral,
}
"""Families that read images."""

WORDS: Final[dict[str, Callable[[str], Family]]] = dict.fromkeys(("Llama 2", "Llama 3", "Gemma", "Qwen3"), _words)
"""Families that read text only."""
