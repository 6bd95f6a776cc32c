"""What hostile images cost: memory of large ones, CPU time of small ones with many frames.

    python benchmarks/memory.py [--calls 64] [--images 16] [--only calls|message|frames] [--limits]

Uses the offline encoder and the shipped policy. The first two run in a process of their own, whose resident memory its
parent reads every two milliseconds; "over idle" is the peak less what it was when the guard had loaded and checked one
image. Unless --limits is given no time limit holds, so that everything is decoded and scored.

- calls: so many checks at once, from as many threads, of one 40-megapixel image each
- message: one check of so many 40-megapixel images
- frames: CPU time of a WebP of 16 x 16 pixels with 8 translucent frames, beside a still of that size

The large images are the ones that cost most for their bytes: plain JPEG and progressive, PNG with and without alpha, of
one colour. Exits with 1 if a figure is over its limit: 1.5 GB, and 3 times.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from guardalign_guardrails import Guard, Policy, Verdict

SIDE = 6324
"""Of a square of 40 megapixels, which the default limits just let in."""

MOST_BYTES = 1.5e9
MOST_TIMES = 3.0
ROUNDS = 5


def bomb(number: int) -> bytes:
    """An image of 40 megapixels and few bytes; each number has its own colour."""
    kind = number % 4
    colour = (number * 3 % 256, 90, 200, 120)
    image = Image.new("RGBA" if kind == 3 else "RGB", (SIDE, SIDE), colour if kind == 3 else colour[:3])
    file = io.BytesIO()
    if kind < 2:
        image.save(file, "JPEG", quality=75, progressive=kind == 1)
    else:
        image.save(file, "PNG", compress_level=6)
    return file.getvalue()


def small(seed: int, frames: int) -> bytes:
    """A WebP of 16 x 16 noisy pixels: translucent frames, or one opaque still."""
    rng = np.random.default_rng(seed)
    channels = 4 if frames > 1 else 3
    pixels = rng.integers(0, 256, (frames, 16, 16, channels), dtype=np.uint8)
    if channels == 4:
        pixels[..., 3] = rng.integers(60, 200, (frames, 16, 16), dtype=np.uint8)
    first, *rest = (Image.fromarray(frame) for frame in pixels)
    file = io.BytesIO()
    if rest:
        first.save(file, "WEBP", save_all=True, append_images=rest, lossless=True, duration=100)
    else:
        first.save(file, "WEBP", lossless=True)
    return file.getvalue()


def ready_guard(*, has_limits: bool = True) -> Guard:
    policy = Policy.default()
    if not has_limits:
        patient = policy.failure.model_copy(update={"timeout_s": None, "max_wait_s": 86_400.0})
        policy = policy.model_copy(update={"failure": patient})
    guard = Guard(policy)
    guard.check(small(0, 1))
    return guard


def told(verdicts: Sequence[Verdict]) -> str:
    """What became of images, as text."""
    counts = Counter(verdict.failure or verdict.uninspectable or verdict.action for verdict in verdicts)
    return ", ".join(f"{count} {what}" for what, count in counts.most_common())


def calls(folder: Path, pipe: Connection, *, has_limits: bool) -> None:
    """Check each file in a thread of its own, all at once."""
    guard = ready_guard(has_limits=has_limits)
    images = [path.read_bytes() for path in sorted(folder.iterdir())]
    with ThreadPoolExecutor(len(images)) as threads:
        pipe.send(None)
        pipe.recv()
        verdicts = list(threads.map(lambda image: guard.check(image).verdict, images))
    pipe.send(told(verdicts))


def message(folder: Path, pipe: Connection, *, has_limits: bool) -> None:
    """Check all files in one call."""
    guard = ready_guard(has_limits=has_limits)
    images = [path.read_bytes() for path in sorted(folder.iterdir())]
    pipe.send(None)
    pipe.recv()
    pipe.send(told([result.verdict for result in guard.check_batch(images)]))


def resident(pid: int, field: str = "VmRSS") -> int:
    """A process's resident memory in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def memory_of(part: Callable[..., None], count: int, name: str, *, has_limits: bool) -> bool:
    """Run a part on so many large images and print its memory; whether that is within the limit."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            (Path(folder) / f"{number:03}").write_bytes(bomb(number))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=part, args=(Path(folder), theirs), kwargs={"has_limits": has_limits})
        process.start()
        theirs.close()
        ours.recv()
        idle = peak = resident(process.pid or 0)
        started = time.perf_counter()
        ours.send(None)
        while not ours.poll(0.002):
            peak = max(peak, resident(process.pid or 0))
        seconds = time.perf_counter() - started
        report = ours.recv()
        process.join()
    over = peak - idle
    print(
        f"{name}: {over / 1e6:.0f} MB over idle ({idle / 1e6:.0f} MB), {seconds:.1f} s; {count} images of 40 "
        f"megapixels, {size / count / 1e3:.0f} kB on average: {report}"
    )
    return over < MOST_BYTES


def frames() -> bool:
    """Print what many frames cost beside one; whether that is within the limit."""
    guard = ready_guard()
    seconds: dict[int, list[float]] = {1: [], 8: []}
    size = 0
    for seed in range(1, ROUNDS + 1):
        for count, taken in seconds.items():
            image = small(seed, count)
            size = max(size, len(image))
            started = time.process_time()
            verdict = guard.check(image).verdict
            taken.append(time.process_time() - started)
            assert verdict.score is not None, verdict.uninspectable or verdict.failure
    still, many = (statistics.median(taken) for taken in seconds.values())
    print(
        f"frames: {many / still:.2f} times a still's CPU time ({many * 1e3:.0f} and {still * 1e3:.0f} ms, medians of "
        f"{ROUNDS}); 16 x 16 pixels, 8 translucent frames, {size / 1e3:.1f} kB"
    )
    return many <= MOST_TIMES * still


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=64)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--only", choices=["calls", "message", "frames"])
    parser.add_argument("--limits", action="store_true", help="Keep the policy's time limits.")
    given = parser.parse_args()
    parts = {
        "calls": lambda: memory_of(calls, given.calls, f"{given.calls} calls at once", has_limits=given.limits),
        "message": lambda: memory_of(message, given.images, "one message", has_limits=given.limits),
        "frames": frames,
    }
    chosen = [given.only] if given.only else list(parts)
    are_within = [parts[name]() for name in chosen]
    sys.exit(0 if all(are_within) else 1)


if __name__ == "__main__":
    main()
