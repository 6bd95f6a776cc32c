"""Chat templates that treat a chat the way each family's own does: its roles, marks, trims, refusals and detours."""

from __future__ import annotations

from typing import Final

_TEXT_OR_IMAGES: Final = """\
{%- macro content(message, image, trims=false) -%}
{%- if message.content is string -%}
{{- (message.content | trim) if trims else message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{- image -}}
{%- elif part.type == 'text' -%}{{- (part.text | trim) if trims else part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""

VICUNA: Final = """\
{%- for message in messages -%}
{%- if message.role != 'system' -%}{{- message.role | upper + ': ' -}}{%- endif -%}
{%- for part in message.content if part.type == 'image' -%}{{- '<image>\n' -}}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{- part.text + ' ' -}}{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
"""LLaVA-1.5: no mark but the names, images before words, system words without a name, no beginning of text."""

LLAMA2: Final = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- '<<SYS>>\n' + message.content[0].text + '\n<</SYS>>\n\n' -}}
{%- elif message.role == 'user' -%}
{{- '[INST] ' -}}
{%- for part in message.content if part.type == 'image' -%}{{- '<image>\n' -}}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
{{- ' [/INST]' -}}
{%- else -%}
{{- ' ' + message.content[0].text + '</s> ' -}}
{%- endif -%}
{%- endfor -%}
"""
"""LLaVA-NeXT with a Mistral inside: instruction brackets, and the first part of a system message only."""

CHATML_IMAGES_FIRST: Final = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + ' ' -}}
{%- for part in message.content if part.type == 'image' -%}{{- '<image>\n' -}}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{- '\n' + part.text -}}{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
"""LLaVA-OneVision."""

CHATML_CONTEXT: Final = (
    _TEXT_OR_IMAGES
    + """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' + content(message, '<IMG_CONTEXT>\n') + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
)
"""InternVL."""

QWEN_VL: Final = (
    _TEXT_OR_IMAGES
    + """\
{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n'
    + content(message, '<|vision_start|><|image_pad|><|vision_end|>') + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
)
"""Qwen2-VL and Qwen2.5-VL: a system message of their own if there is none."""

QWEN3: Final = (
    _TEXT_OR_IMAGES
    + """\
{%- set first = 0 -%}
{%- if tools or messages[0].role == 'system' -%}
{{- '<|im_start|>system\n' -}}
{%- if messages[0].role == 'system' -%}{{- content(messages[0], '') -}}{%- endif -%}
{%- if tools -%}
{{- '\n\n# Tools\n<tools>' -}}
{%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\n</tools>' -}}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{- '<|im_start|>user\n' + content(message, '<|vision_start|><|image_pad|><|vision_end|>') + '<|im_end|>\n' -}}
{%- elif message.role == 'assistant' -%}
{%- set said = content(message, '') -%}
{{- '<|im_start|>assistant\n' + said.split('</think>')[-1].lstrip('\n') -}}
{%- for call in message.tool_calls or [] -%}
{{- '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- elif message.role == 'tool' -%}
{{- '<|im_start|>user\n<tool_response>\n' + content(message, '<|vision_start|><|image_pad|><|vision_end|>')
    + '\n</tool_response><|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
)
"""Qwen3 and Qwen3-VL: tools, and the thoughts of earlier answers left out."""

LLAMA3_VISION: Final = (
    _TEXT_OR_IMAGES
    + """\
{{- bos_token -}}
{%- set seen = namespace(images=false) -%}
{%- for message in messages if message.content is not string -%}
{%- for part in message.content if part.type == 'image' -%}{%- set seen.images = true -%}{%- endfor -%}
{%- endfor -%}
{%- if messages[0].role == 'system' -%}
{%- if seen.images -%}{{- raise_exception('Images do not go with a system message.') -}}{%- endif -%}
{%- set told, rest = messages[0].content | trim, messages[1:] -%}
{%- else -%}
{%- set told, rest = '', messages -%}
{%- endif -%}
{%- if not seen.images -%}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n' + told + '<|eot_id|>' -}}
{%- endif -%}
{%- for message in rest -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' -}}
{{- content(message, '<|image|>') + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}
"""
)
"""Llama 3.2 Vision: writes the beginning of text, knows system messages as strings only and never beside images."""

LLAMA2_WORDS: Final = """\
{%- set told, rest = '', messages -%}
{%- if messages[0].role == 'system' -%}
{%- set told, rest = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n', messages[1:] -%}
{%- endif -%}
{%- for message in rest -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('Roles alternate.') -}}{%- endif -%}
{%- if message.role == 'user' -%}
{{- bos_token + '[INST] ' + ((told + message.content) if loop.first else message.content) | trim + ' [/INST]' -}}
{%- else -%}
{{- ' ' + message.content | trim + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""
"""Llama 2 without images, which begins the text anew with every turn."""

LLAMA3: Final = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}
"""
"""Llama 3 without images."""

IDEFICS: Final = """\
{{- START -}}
{%- for message in messages -%}
{{- message.role | capitalize + (':' if message.content[0].type == 'image' else ': ') -}}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{{- '<end_of_utterance>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""
"""Idefics3 and SmolVLM, which begin with another token each."""

GEMMA3: Final = (
    _TEXT_OR_IMAGES
    + """\
{{- bos_token -}}
{%- set told, rest = '', messages -%}
{%- if messages[0].role == 'system' -%}
{%- set told = messages[0].content if messages[0].content is string else messages[0].content[0].text -%}
{%- set told, rest = told + '\n\n', messages[1:] -%}
{%- endif -%}
{%- for message in rest -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('Roles alternate.') -}}{%- endif -%}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' -}}
{%- if loop.first -%}{{- told -}}{%- endif -%}
{{- content(message, '<start_of_image>', trims=true) + '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}
"""
)
"""Gemma 3: users say the system message; words are trimmed, so that images touch them."""

GEMMA: Final = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{- raise_exception('There is no system role.') -}}{%- endif -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('Roles alternate.') -}}{%- endif -%}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\n' -}}
{{- message.content | trim + '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}
"""
"""Gemma without images, which has no system role at all."""

PIXTRAL: Final = (
    _TEXT_OR_IMAGES
    + """\
{{- bos_token -}}
{%- set told, rest = '', messages -%}
{%- if messages[0].role == 'system' -%}
{%- set told, rest = content(messages[0], '') + '\n\n', messages[1:] -%}
{%- endif -%}
{%- for message in rest -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('Roles alternate.') -}}{%- endif -%}
{%- if message.role == 'user' -%}
{{- '[INST]' + (told if loop.last else '') + content(message, '[IMG]') + '[/INST]' -}}
{%- else -%}
{{- message.content + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""
)
"""Pixtral: the last user turn says the system message, and an answer must be a string."""

MISTRAL3: Final = (
    _TEXT_OR_IMAGES
    + """\
{{- bos_token -}}
{%- set told, rest = 'You are a helpful assistant.', messages -%}
{%- if messages[0].role == 'system' -%}
{%- set told, rest = content(messages[0], ''), messages[1:] -%}
{%- endif -%}
{{- '[SYSTEM_PROMPT]' + told + '[/SYSTEM_PROMPT]' -}}
{%- for message in rest -%}
{%- if message.role == 'user' -%}{{- '[INST]' + content(message, '[IMG]') + '[/INST]' -}}
{%- elif message.role == 'assistant' -%}{{- content(message, '') + eos_token -}}
{%- else -%}{{- raise_exception('Only user and assistant speak here.') -}}
{%- endif -%}
{%- endfor -%}
"""
)
"""Mistral 3: a system message in brackets of its own, with a default."""
