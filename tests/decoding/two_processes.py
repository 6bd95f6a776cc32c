"""Run by torchrun in two processes: a tiny model split between them answers as it does whole. Writes what it saw."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny_models import TEXT
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.distributed import DistributedConfig

from guardalign_guardrails.decoding.attention.calibration import Calibration
from guardalign_guardrails.decoding.attention.token_spans import BatchSpans, PromptSpans
from guardalign_guardrails.decoding.config import CalibrationConfig

CONFIGS = {
    "plain": CalibrationConfig.fixed(0),
    "fixed": CalibrationConfig.fixed(1.0, layers=(0, 1)),
    "target": CalibrationConfig(target=0.5, layers=(0, 1)),
}
SPANS = BatchSpans((PromptSpans((1, 5), ((8, 14),)),), 20)


def answered(model: Any) -> dict[str, Any]:
    """Logits of prompt and answer with and without calibration, and shares of attention."""
    torch.manual_seed(1)
    ids = torch.randint(3, 99, (1, SPANS.length))
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "output_logits": True}
    settings |= {"return_dict_in_generate": True, "pad_token_id": 0}
    result = {}
    for name, config in CONFIGS.items():
        calibration = Calibration(model, config)
        with calibration, calibration.generation(SPANS, is_reported=True) as report:
            out = model.generate(ids, **settings)
        result[name] = torch.stack(out.logits).double().flatten().tolist()
        result[name + " tokens"] = out.sequences.tolist()
        result[name + " gamma"] = [gamma for row in report.gamma.values() for gamma in row]
        result[name + " share"] = [share for row in report.after.values() for share in row]
    weight = model.model.layers[0].self_attn.q_proj.weight
    result["own rows"] = getattr(weight, "_local_tensor", weight).shape[0]
    return result


def weights(folder: Path) -> None:
    """The tiny model, written where both processes read it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**TEXT, "num_key_value_heads": 4, "vocab_size": 100}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(6)
    model.save_pretrained(folder)


def main() -> None:
    """Load the model split over the processes, and write the first one's result."""
    folder = Path(sys.argv[1])
    model = LlamaForCausalLM.from_pretrained(
        folder, distributed_config=DistributedConfig(tp_plan="auto"), dtype=torch.float32
    )
    result = answered(model.eval())
    result["processes"] = dist.get_world_size()
    if int(os.environ["RANK"]) == 0:
        (folder / "split.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
