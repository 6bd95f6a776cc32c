"""Throw damaged and hostile image files at the guard: each must end in a verdict with a score, or say why it cannot.

Seeds of every accepted format are made in code, then cut, flipped, spliced and lied about. Files are checked in child
processes, so that a crash, a hang or a swallowed gigabyte is seen and counted rather than suffered.

    python benchmarks/fuzz_images.py --count 10000 --seed 0 --time-limit 10
"""

from __future__ import annotations

import argparse
import collections
import functools
import importlib.util
import io
import itertools
import multiprocessing
import multiprocessing.connection
import os
import random
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageCms

from guardalign_guardrails import Guard, ImageDecodeError, Policy
from guardalign_guardrails.guarding.cache import VerdictCache
from guardalign_guardrails.images import decode

MEMORY_LIMIT_MB: Final = 1500
MAGIC: Final = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xdb", b"GIF89a", b"GIF87a", b"BM", b"II*\0", b"MM\0*"),
    *(b"RIFF\xff\xff\0\0WEBPVP8 ", b"RIFF\xff\xff\0\0WEBPVP8L", b"RIFF\xff\xff\0\0WEBPVP8X", b"RIFF\x10\0\0\0WEBP"),
    *(b"\0\0\x01\0", b"SIMPLE  =", b"%!PS-Adobe", b"<svg ", b"%PDF-1.7", b"\0\0\0\x18ftypheic", b"II+\0", b"8BPS", b""),
    *(b"\0\0\0\x14ftypavif\0\0\0\0avif", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
)


def decode_one(data: bytes) -> str:
    """Outcome of decoding alone; any exception but ImageDecodeError escapes."""
    try:
        return "decoded" if decode(data).views else "no views"
    except ImageDecodeError as error:
        return error.reason


@functools.cache
def _guard() -> Guard:
    """The real guard on the real offline encoder, one region an image so that ten thousand files take minutes."""
    torch.set_num_threads(1)
    policy = Policy.from_yaml(
        "extends: default\n"
        "thresholds: {kind: score, flag: 0.2, mask: 0.4}\n"
        "regions: {method: grid, scales: [1, 2]}\n"
        "masking: {max_coverage: 1.0}\n"
        # The parent has a time limit of its own, and what is measured is one file at a time.
        "failure: {timeout_s: null}\n"
    )
    guard = Guard(policy, "offline", cache=VerdictCache(max_entries=0), max_concurrent=1)
    guard.prepare()
    return guard


def check_one(data: bytes) -> str:
    """Outcome of one file: a verdict's action with a score behind it, or why it could not be opened.

    Any exception escapes and counts as a crash, and so does a file that passes without having been scored.
    """
    verdict = _guard().check(data).verdict
    if verdict.failure:
        raise RuntimeError(f"detection failed: {verdict.failure}")
    if verdict.uninspectable:
        if verdict.action != "block":
            raise RuntimeError(f"uninspectable but {verdict.action}")
        return verdict.uninspectable
    if verdict.score is None or not verdict.regions:
        raise RuntimeError("passed without a score")
    return f"scored: {verdict.action}"


def mutations(seed: int) -> Iterator[tuple[str, bytes]]:
    """An endless, reproducible stream of named files, most of them broken."""
    rng = random.Random(seed)
    seeds = _seed_files(rng)
    names = sorted(seeds)
    yield from seeds.items()
    bombs = _bombs()
    edits: list[Callable[[random.Random, bytes, bytes], bytes]] = [
        *(_truncate, _flip, _flip, _flip, _insert, _delete, _splice, _edit_integers, _edit_integers, _repeat),
    ]
    for step in itertools.count():
        if step % 40 == 0:
            name = sorted(bombs)[step // 40 % len(bombs)]
            yield f"bomb:{name}", bombs[name]()
            continue
        if step % 23 == 0:
            yield "garbage", rng.choice(MAGIC) + rng.randbytes(rng.choice([0, 1, 7, 30, 300, 5000]))
            continue
        name, other = rng.choice(names), rng.choice(names)
        data = seeds[name]
        used = []
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            edit = rng.choice(edits)
            data = edit(rng, data, seeds[other])
            used.append(edit.__name__.strip("_"))
        if data.startswith(b"\x89PNG") and rng.random() < 0.7:
            data = _repair_png(data)
        yield f"{name}:{'+'.join(used)}", data


def _truncate(rng: random.Random, data: bytes, _: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(rng: random.Random, data: bytes, _: bytes) -> bytes:
    out = bytearray(data)
    # Headers decide what gets allocated, so half of the flips go there.
    span = len(out) if rng.random() < 0.5 else min(len(out), 120)
    for _step in range(rng.choice([1, 1, 2, 8, 40]) if span else 0):
        out[rng.randrange(span)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(out)


def _insert(rng: random.Random, data: bytes, _: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice([1, 2, 4, 100])) + data[at:]


def _delete(rng: random.Random, data: bytes, _: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice([1, 2, 4, 100]) :]


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at, start = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    return data[:at] + other[start : start + rng.choice([16, 200, 5000])] + data[at + rng.choice([0, 16, 200]) :]


def _repeat(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.choice([4, 30, 400])]
    return data[:start] + piece * rng.choice([2, 50, 500]) + data[start:]


def _edit_integers(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """Overwrite an aligned or unaligned integer, usually in the header, with a size that hurts."""
    if len(data) < 16:
        return data
    out = bytearray(data)
    code = rng.choice(["<H", ">H", "<I", ">I"])
    value = rng.choice([0, 1, 255, 5000, 6300, 16383, 32767, 65535, 100_000, 2**31 - 1, 2**32 - 1])
    at = rng.randrange(min(len(out) - 4, 200))
    struct.pack_into(code, out, at, value & (0xFFFF if code[1] == "H" else 0xFFFFFFFF))
    return bytes(out)


def _repair_png(data: bytes) -> bytes:
    """Correct the checksums, so that damage reaches the code behind them."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, at)
        if at + 12 + length > len(out):
            break
        struct.pack_into(">I", out, at + 8 + length, zlib.crc32(out[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(out)


def _save(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _seed_files(rng: random.Random) -> dict[str, bytes]:
    """Small valid files of every accepted format, in every mode and compression that Pillow writes."""
    noise = np.frombuffer(rng.randbytes(32 * 24 * 4), np.uint8).reshape(24, 32, 4).copy()
    noise[4:20, 4:28] = (200, 40, 40, 128)
    rgba = Image.fromarray(noise)
    rgb = rgba.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.fromarray(np.roll(noise, shift, 1)) for shift in (3, 6, 9)]
    deep = Image.fromarray((np.arange(24 * 32, dtype=np.uint32) * 85).astype(np.uint16).reshape(24, 32))
    floats = Image.fromarray(np.array([[0, 0.5, np.nan], [np.inf, -1e30, 3]], np.float32))
    palette = rgb.quantize(32)
    files = {
        **{f"png-{m}": _save(rgba.convert(m), "PNG") for m in ("1", "L", "LA", "P", "RGB", "RGBA")},
        **{f"tiff-{m}": _save(rgba.convert(m), "TIFF") for m in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")},
        **{f"bmp-{m}": _save(rgba.convert(m), "BMP") for m in ("1", "L", "P", "RGB", "RGBA")},
        **{f"jpeg-{m}": _save(rgb.convert(m), "JPEG") for m in ("L", "RGB", "CMYK")},
        **{f"gif-{m}": _save(rgba.convert(m), "GIF") for m in ("1", "L", "P", "RGBA")},
        **{
            f"tiff-{c}": _save(rgb if c != "group4" else rgb.convert("1"), "TIFF", compression=c)
            for c in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
        },
        "jpeg-progressive": _save(rgb, "JPEG", progressive=True, exif=exif),
        "jpeg-exif": _save(rgb, "JPEG", exif=exif),
        "png-exif": _save(rgba, "PNG", exif=exif, optimize=True),
        "png-trns": _save(palette, "PNG", transparency=3),
        "png-16": _save(deep, "PNG"),
        "tiff-16": _save(deep, "TIFF"),
        "tiff-float": _save(floats, "TIFF"),
        "webp-lossy": _save(rgb, "WEBP", exif=exif),
        "webp-lossless": _save(rgba, "WEBP", lossless=True),
        "mpo": _save(rgb, "MPO", save_all=True, append_images=[frames[0].convert("RGB")]),
        "bmp-rle": _rle_bmp(32, 24, bytes([32, 7, 0, 0]) * 24 + b"\0\1"),
    }
    files |= _boxed_files(rgb, rgba, exif)
    for name in ("PNG", "GIF", "WEBP", "TIFF", "AVIF"):
        files[f"{name.lower()}-frames"] = _save(rgba, name, save_all=True, append_images=frames)
    files["gif-dispose"] = _save(rgba, "GIF", save_all=True, append_images=frames, disposal=2, transparency=0)
    files["tiff-sizes"] = _save(rgb, "TIFF", save_all=True, append_images=[rgb.resize((90, 70))])
    return files


def _boxed_files(rgb: Image.Image, rgba: Image.Image, exif: Image.Exif) -> dict[str, bytes]:
    """Seeds of AVIF, JPEG 2000 and HEIC, and such with profiles."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {
        "avif": _save(rgb, "AVIF", exif=exif),
        "avif-alpha": _save(rgba, "AVIF", icc_profile=profile),
        "jp2": _save(rgb, "JPEG2000"),
        "jp2-alpha": _save(rgba, "JPEG2000", irreversible=True),
        "jp2-bare": _save(rgb, "JPEG2000", no_jp2=True, tile_size=(16, 16), num_resolutions=3),
        "jpeg-profile": _save(rgb, "JPEG", icc_profile=profile, xmp=b'<a tiff:Orientation="6"/>'),
        "png-profile": _save(rgba, "PNG", icc_profile=profile),
    }
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        for name, image in (("heic", rgb), ("heic-alpha", rgba)):
            buffer = io.BytesIO()
            pillow_heif.from_pillow(image).save(buffer, exif=exif.tobytes())
            files[name] = buffer.getvalue()
    return files


def _rle_bmp(width: int, height: int, body: bytes) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return struct.pack("<2sIHHI", b"BM", 1078 + len(body), 0, 0, 1078) + info + bytes(1024) + body


def png_bomb(width: int, height: int, colour_type: int = 2) -> bytes:
    """A valid PNG of one colour, a few kilobytes however large it is."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    packer = zlib.compressobj(9)
    rows = bytes(1 + width * channels)
    body = b"".join(packer.compress(rows) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)),
            (b"IDAT", body),
            (b"IEND", b""),
        )
    )


def gif_frames(width: int, height: int, count: int) -> bytes:
    """A GIF of ``count`` frames that each redraw the full canvas and are disposed of to transparency."""
    still = _save(Image.new("L", (width, height)), "GIF")
    start = still.index(b",", 13 + (3 << (still[10] & 7) + 1))
    return still[:start] + (b"!\xf9\x04\x09\x05\0\x01\0" + still[start:-1]) * count + b";"


def _bombs() -> dict[str, Callable[[], bytes]]:
    def big(name: str, mode: str, side: int = 6200, **options: Any) -> Callable[[], bytes]:
        return lambda: _save(Image.new(mode, (side, side)), name, **options)

    def frames(name: str, side: int, count: int, mode: str = "RGBA", **options: Any) -> Callable[[], bytes]:
        def make() -> bytes:
            pages = [
                Image.new(mode, (side, side), 40 * i % 255 if mode == "L" else (40 * i % 255, 9, i % 255, 128))
                for i in range(count)
            ]
            return _save(pages[0], name, save_all=True, append_images=pages[1:], **options)

        return make

    return {
        "png-400mp": lambda: png_bomb(20_000, 20_000),
        "png-38mp-rgba": lambda: png_bomb(6200, 6200, 6),
        "png-wide": lambda: png_bomb(65_000, 600),
        "png-tall": lambda: png_bomb(600, 65_000, 6),
        "png-thin": lambda: png_bomb(1, 5_000_000, 0),
        "gif-many": lambda: gif_frames(10, 10, 200_000),
        "gif-large": lambda: gif_frames(6000, 6000, 3),
        "gif-full": lambda: gif_frames(3100, 3100, 41),
        "gif-tiny": lambda: gif_frames(1, 1, 24_000),
        "gif-comment": lambda: gif_frames(9, 9, 1)[:-1] + b"!\xfe" + (b"\xff" + bytes(255)) * 20_000 + b"\0;",
        "gif-blocks": lambda: gif_frames(9, 9, 1)[:-1] + b"!\xfe" + b"\1a" * 5_000_000 + b"\0;",
        "png-chunks": lambda: png_bomb(9, 9)[:33] + b"\0\0\0\0tEXt\x0d\xe3\xc6\x2e" * 500_000 + png_bomb(9, 9)[33:],
        "webp-large": big("WEBP", "RGBA", lossless=True, method=0, quality=0),
        "webp-frames": frames("WEBP", 1500, 8),
        "webp-frames-10mp": frames("WEBP", 3160, 4, lossless=True, method=0, quality=0),
        "apng-frames": frames("PNG", 2000, 12),
        "tiff-pages": frames("TIFF", 3000, 5, compression="tiff_lzw"),
        "tiff-pages-35mp": frames("TIFF", 5900, 4, "L", compression="tiff_lzw"),
        "tiff-pages-35mp-alpha": frames("TIFF", 5900, 2, compression="tiff_lzw"),
        "tiff-float": big("TIFF", "F", 2500),
        "tiff-38mp": big("TIFF", "CMYK", compression="tiff_adobe_deflate"),
        "tiff-16": big("TIFF", "I;16", compression="tiff_adobe_deflate"),
        "tiff-1bit": big("TIFF", "1", compression="group4"),
        "jpeg-progressive": big("JPEG", "CMYK", progressive=True, quality=100, subsampling=0),
        "jp2-large": big("JPEG2000", "RGB", 4400),
        "jp2-38mp": big("JPEG2000", "L"),
        "avif-large": big("AVIF", "RGBA", 4000, speed=10),
        "bmp-rle": lambda: _rle_bmp(2000, 2000, b"\1\7" * 4_000_000),
        "bmp-rle-delta": lambda: _rle_bmp(39_000_000, 1, b"\0\2\xff\xff" * 100),
    }


@dataclass
class Worker:
    """A child process that checks one file at a time, replaced when it dies or hangs."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    name: str = ""
    since: float = 0.0
    data: bytes = b""


@dataclass
class Report:
    """What happened so far."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest: tuple[float, str] = (0.0, "")
    peak_mb: float = 0.0
    peak_name: str = ""
    failures: list[tuple[str, str, bytes]] = field(default_factory=list)

    def add(self, worker: Worker, outcome: str, seconds: float, peak_mb: float = 0.0) -> None:
        """Count one file."""
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, (seconds, worker.name))
        if peak_mb > self.peak_mb:
            self.peak_mb, self.peak_name = peak_mb, worker.name
            if peak_mb > MEMORY_LIMIT_MB:
                self.failures.append(("over memory", worker.name, worker.data))
        if outcome.startswith(("CRASH", "HANG")):
            self.failures.append((outcome, worker.name, worker.data))


def _work(pipe: Connection) -> None:
    # libtiff writes its complaints to the descriptor itself.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _guard()
    while True:
        data = pipe.recv_bytes()
        # Time on the processor, so that a busy machine does not look like a slow decoder.
        started = time.process_time()
        try:
            outcome = check_one(data)
        except BaseException as error:  # noqa: BLE001 - that this can be anything is the finding
            outcome = f"CRASH {type(error).__name__}"
        seconds = time.process_time() - started
        # Kilobytes on Linux, bytes on macOS.
        scale = 1024 * 1024 if sys.platform == "darwin" else 1024
        pipe.send((outcome, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale))


def _start() -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours)


def run(count: int, seed: int, time_limit: float, workers: int = 2) -> Report:
    """Check ``count`` files in child processes."""
    report = Report()
    files = itertools.islice(mutations(seed), count)
    pool = [_start() for _ in range(workers)]
    busy: list[Worker] = []
    idle = list(pool)
    is_done = False
    while busy or not is_done:
        while idle and not is_done:
            item = next(files, None)
            if item is None:
                is_done = True
                break
            worker = idle.pop()
            worker.name, worker.data = item
            worker.pipe.send_bytes(worker.data)
            worker.since = time.perf_counter()
            busy.append(worker)
        ready = multiprocessing.connection.wait([worker.pipe for worker in busy], timeout=0.5) if busy else []
        for worker in list(busy):
            seconds = time.perf_counter() - worker.since
            if worker.pipe in ready:
                busy.remove(worker)
                try:
                    outcome, seconds, peak_mb = worker.pipe.recv()
                    report.add(worker, "HANG" if seconds > time_limit else outcome, seconds, peak_mb)
                    idle.append(worker)
                    continue
                except (EOFError, ConnectionError):
                    worker.process.join(5)
                    report.add(worker, f"CRASH exit {worker.process.exitcode}", seconds)
            # A new interpreter needs a moment to load the guard before it reads its first file.
            elif seconds > time_limit + 60:
                busy.remove(worker)
                worker.process.kill()
                report.add(worker, "HANG", seconds)
            else:
                continue
            idle.append(_start())
    for worker in idle:
        worker.process.kill()
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-limit", type=float, default=10.0, help="seconds for one file")
    options = parser.parse_args()
    started = time.perf_counter()
    report = run(options.count, options.seed, options.time_limit)
    print(f"{'outcome':<24}{'files':>8}")
    for outcome, number in report.outcomes.most_common():
        print(f"{outcome:<24}{number:>8}")
    print(f"\nslowest file   {report.slowest[0]:.2f} s  ({report.slowest[1]})")
    print(f"peak memory    {report.peak_mb:.0f} MB  ({report.peak_name}), limit {MEMORY_LIMIT_MB} MB")
    print(f"total          {time.perf_counter() - started:.0f} s")
    for outcome, name, data in report.failures[:20]:
        print(f"FAILED {outcome}: {name} ({len(data)} bytes) {data[:64].hex()}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
