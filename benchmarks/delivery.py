"""What delivery costs harmless images: how many pass as they came, in which size, at what cost, with which actions.

    python benchmarks/delivery.py --ordinary DIR [--large DIR] [--limit N]

``--ordinary`` is a folder with ``images.jsonl`` (rows with ``path`` and ``group``); its photos and documents are
checked as today's guard does and as a guard did that scores the decoded image alone, in turns. ``--large`` holds a
folder for each kind of large harmless image (wallpapers, rendered manuals, ...); collages are made of the ordinary
photos that are no part of the shipped reference.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from guardalign_guardrails import CheckResult, Guard
from guardalign_guardrails.guarding.decide import decide
from guardalign_guardrails.guarding.views import highest
from guardalign_guardrails.images import decode
from guardalign_guardrails.images.canonical import encode_canonical, shrunk

RATES: Final = (0.01, 0.02, 0.05)
COLLAGE_CELL: Final = 300


def main() -> None:
    arguments = _arguments()
    Image.MAX_IMAGE_PIXELS = None
    guard = Guard()
    guard.prepare()
    guard.check(Image.new("RGB", (512, 384), "white"))
    rows = [json.loads(line) for line in (arguments.ordinary / "images.jsonl").read_text(encoding="utf-8").splitlines()]
    paths = {row["path"]: row["group"] for row in rows if row["group"] in ("photos", "documents")}
    held_out = [path for path in sorted(paths) if int(hashlib.sha256(path.encode()).hexdigest(), 16) % 3 == 0]
    print(f"shipped policy, {guard.detector.encoder.name} encoder, profile of {len(guard.profile.scores)} images\n")
    if not arguments.skip_ordinary:
        ordinary(guard, [arguments.ordinary / path for path in sorted(paths)][:: arguments.every])
    if arguments.large is not None:
        photos = [arguments.ordinary / path for path in held_out if paths[path] == "photos"]
        for folder in sorted(path for path in arguments.large.iterdir() if path.is_dir()):
            files = sorted(path for path in folder.iterdir() if path.is_file())
            large(guard, folder.name, (path.read_bytes() for path in files[: arguments.limit]))
        large(guard, "collages", collages(photos, min(arguments.limit, 60)))


def ordinary(guard: Guard, paths: Sequence[Path]) -> None:
    """Shares, actions and time of images that are no larger than one look sees."""
    kinds, reasons, changed = Counter[str](), Counter[str](), []
    alone, whole = [], []
    for path in paths:
        data = path.read_bytes()
        started = time.perf_counter()
        before = _as_before(guard, data)
        alone.append(time.perf_counter() - started)
        started = time.perf_counter()
        verdict = guard.check(data).verdict
        whole.append(time.perf_counter() - started)
        kinds[verdict.delivery_proposed if verdict.proposed != "mask" else "masked"] += 1
        reasons.update(verdict.delivery_reasons)
        if verdict.after_masking is None and verdict.proposed != before:
            changed.append((str(path), before, verdict.proposed))
    passed = kinds["original"] / max(1, len(paths) - kinds["masked"] - kinds["none"])
    print(f"## {len(paths)} ordinary photos and documents\n")
    print(f"original: {passed:.1%} of those that pass; {dict(kinds)}; reasons {dict(reasons)}")
    print(f"another action because of the new views: {len(changed)} ({len(changed) / len(paths):.1%}) {changed[:5]}")
    ratio = sum(whole) / sum(alone)
    print(
        f"time: {statistics.median(whole) * 1e3:.0f} ms, scored alone {statistics.median(alone) * 1e3:.0f} ms; "
        f"all together {ratio:.3f} x (with masks), median {statistics.median(whole) / statistics.median(alone):.3f} x\n"
    )


def large(guard: Guard, name: str, images: Iterable[bytes]) -> None:
    """Shares, sizes, time and action rates of large images."""
    kinds, reasons = Counter[str](), Counter[str]()
    sides, times, sizes, encode_ms, p_values = [], [], [], [], []
    for data in images:
        started = time.perf_counter()
        result = guard.check(data)
        times.append(time.perf_counter() - started)
        verdict = result.verdict
        kinds[verdict.delivery] += 1
        reasons.update(verdict.delivery_reasons)
        p_values.append(0.0 if verdict.p_value is None else verdict.p_value)
        if verdict.looked_at:
            sides.append(verdict.looked_at)
        if verdict.delivery == "canonical":
            sizes.append(len(_bytes(result)) / len(data))
            encode_ms.append(_encoding_ms(data, verdict.looked_at or 0))
    count = len(times)
    rates = ", ".join(f"{sum(p <= rate for p in p_values) / count:.1%} at {rate:.0%}" for rate in RATES)
    print(f"## {count} {name}\n")
    print(f"delivery {dict(kinds)}; reasons {dict(reasons)}")
    print(f"looked at, median {statistics.median(sides):.0f} px (least {min(sides)}); p <= rate: {rates}")
    print(f"time, median {statistics.median(times):.2f} s, most {max(times):.2f} s")
    if sizes:
        print(
            f"canonical: {statistics.median(sizes):.2f} x the original's bytes (median), shrinking and encoding "
            f"{statistics.median(encode_ms):.0f} ms"
        )
    print()


def collages(paths: Sequence[Path], count: int) -> Iterable[bytes]:
    """Grids of 4 x 4 to 8 x 8 photos as JPEG."""
    rng = random.Random(0)
    for _ in range(count):
        side = rng.randint(4, 8)
        sheet = Image.new("RGB", (side * COLLAGE_CELL,) * 2, "white")
        for place in range(side * side):
            with Image.open(rng.choice(paths)) as photo:
                cell = photo.convert("RGB").resize((COLLAGE_CELL, COLLAGE_CELL))
            sheet.paste(cell, (place % side * COLLAGE_CELL, place // side * COLLAGE_CELL))
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def _as_before(guard: Guard, data: bytes) -> str:
    """The action of a guard that scores the decoded image alone."""
    image = decode(data)
    maps, _ = guard.detector.detect([image.flattened])
    return decide(highest(maps), guard.policy, guard.profile, "user").action


def _encoding_ms(data: bytes, side: int) -> float:
    image = decode(data)
    started = time.perf_counter()
    encode_canonical([shrunk(image.flattened, side)], is_lossy=image.is_lossy)
    return (time.perf_counter() - started) * 1e3


def _bytes(result: CheckResult) -> bytes:
    assert isinstance(result.output, bytes)
    return result.output


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ordinary", type=Path, required=True, help="folder with images.jsonl and the images")
    parser.add_argument("--large", type=Path, help="folder of folders of large harmless images")
    parser.add_argument("--limit", type=int, default=150, help="most images of each kind of large ones")
    parser.add_argument("--every", type=int, default=1, help="look at every n-th ordinary image only")
    parser.add_argument("--skip-ordinary", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
