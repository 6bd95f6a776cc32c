"""A model that is split over processes is calibrated as it is whole: heads are split, and calibration is by head."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import llama, made
from transformers import LlamaForCausalLM
from two_processes import CONFIGS, answered, weights

from guardalign_guardrails.decoding.attention.calibration import Calibration
from guardalign_guardrails.decoding.config import CalibrationConfig
from guardalign_guardrails.errors import CalibrationError

HERE = Path(__file__).parent


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    weights(tmp_path)
    whole = answered(LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval())
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [*command, str(HERE / "two_processes.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    split = json.loads((tmp_path / "split.json").read_text())
    assert split["processes"] == 2
    assert split["own rows"] * 2 == whole["own rows"]
    for name in CONFIGS:
        assert split[name + " tokens"] == whole[name + " tokens"]
        for what in (name, name + " gamma", name + " share"):
            assert split[what] == pytest.approx(whole[what], abs=1e-4)
    assert min(whole["target gamma"]) < max(whole["target gamma"]) < 4, "the target is nowhere, or out of reach"
    for name in ("fixed", "target"):
        moved = max(abs(a - b) for a, b in zip(whole["plain"], whole[name], strict=True))
        assert moved > 1e-2, "calibration did nothing that could be wrong"


def test_heads_cannot_be_chosen_where_they_are_split():
    model = made(llama)
    model._tp_size = 2
    with pytest.raises(CalibrationError, match="split"):
        Calibration(model, CalibrationConfig(heads=(0,)))
