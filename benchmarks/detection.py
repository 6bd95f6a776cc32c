"""How well and at what cost each scoring finds weapons: the table of docs/benchmarks.md, in one run.

    python benchmarks/detection.py --data DIR [--write-profiles guardalign_guardrails/detection/profiles]

DIR holds ``images.jsonl`` (rows with ``path``, ``group``, ``label``) and the images. Benign images are split by a hash
of their path: two thirds make the reference, one third is measured. Weapons are pasted, whole, on the busiest third of
the measured photos at 25, 10 and 5 % of the area, and compared with the same photos unpasted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import binomtest

from guardalign_guardrails.detection.detector import Detector
from guardalign_guardrails.detection.encoders import load_encoder
from guardalign_guardrails.detection.reference import Profile, make_profile, profile_file_name
from guardalign_guardrails.detection.regions import cut
from guardalign_guardrails.detection.scoring import ScoreMap, Scorer, TransportScorer
from guardalign_guardrails.evaluation.baselines import CosineScorer
from guardalign_guardrails.guarding.guard import Guard
from guardalign_guardrails.guarding.views import reference_tiles
from guardalign_guardrails.images import decode
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.policy.detection import RegionConfig, ScoringConfig

FRACTIONS = (0.25, 0.10, 0.05)
PASTES_PER_PHOTO = 2

JOINT = TransportScorer(ScoringConfig())
SETTINGS: tuple[tuple[str, Scorer, RegionConfig | None], ...] = (
    ("global-cosine", CosineScorer("global-cosine"), None),
    ("best-region-cosine", CosineScorer("best-region-cosine"), None),
    ("paper", TransportScorer(ScoringConfig(method="paper")), None),
    ("conditional", TransportScorer(ScoringConfig(method="conditional")), None),
    ("joint", JOINT, None),
    ("joint, grid 1+2+4", JOINT, RegionConfig(method="grid", scales=(1, 2, 4))),
    ("joint, dense 448", JOINT, RegionConfig(method="dense", scales=(448,), windows=(1, 3, 5, 7))),
)


@dataclass(frozen=True)
class Sample:
    """One image to score: benign, a whole weapon, or a paste with the box of the pasted weapon."""

    image: Image.Image
    kind: str
    background: str = ""
    box: tuple[float, float, float, float] | None = None


@dataclass
class Result:
    """What one setting gave."""

    scores: dict[str, list[float]] = field(default_factory=dict)
    hits: dict[str, list[bool]] = field(default_factory=dict)
    encode_ms: list[float] = field(default_factory=list)
    score_ms: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    tiled: list[float] = field(default_factory=list)


def main() -> None:
    arguments = _arguments()
    encoder = load_encoder(arguments.encoder)
    policy = Policy.load(arguments.policy) if arguments.policy else Policy.default()
    reference, samples = load_samples(arguments.data)
    print(f"{len(reference)} benign images make the reference; {len(samples)} are measured, {encoder.name} encoder.")
    if arguments.masks_only:
        print_masks(Guard(policy, encoder), samples)
        return
    wanted = [setting for setting in SETTINGS if not arguments.only or setting[0] in arguments.only]
    detectors = {
        name: Detector(policy.model_copy(update={"regions": regions}), encoder, scorer=scorer)
        for name, scorer, regions in wanted
    }
    results: dict[str, Result] = {}
    # Four more looks at each reference image, which only a profile needs.
    with_tiles = arguments.write_profiles is not None
    for regions in {detector.regions: None for detector in detectors.values()}:
        measured = measure(
            {n: d for n, d in detectors.items() if d.regions == regions}, reference, samples, with_tiles=with_tiles
        )
        print(f"measured: {', '.join(measured)}", file=sys.stderr, flush=True)
        results |= measured
    print("\n" + "\n".join([_HEADER, *(row(name, results[name]) for name in detectors)]))
    guards = {}
    for name, scorer, regions in wanted:
        profile = make_profile(
            results[name].reference,
            detectors[name].profile_key,
            name=f"{encoder.name}-{policy.name}-{scorer.key.method}",
            encoder_name=encoder.name,
            note="Scores of benign photos and documents; the images are research-only and not shipped.",
            tiled=results[name].tiled,
        )
        print(f"\n{name}")
        print_rates(profile, results[name])
        if regions is None and arguments.write_profiles:
            profile.save(arguments.write_profiles / profile_file_name(profile.key))
        guards[name] = Guard(policy.model_copy(update={"regions": regions}), encoder, profile=profile, scorer=scorer)
    if "joint" in guards:
        print_masks(guards["joint"], samples)


def load_samples(data: Path) -> tuple[list[Image.Image], list[Sample]]:
    """Reference images, and the samples that are measured."""
    rows = [json.loads(line) for line in (data / "images.jsonl").read_text(encoding="utf-8").splitlines()]
    benign = {row["path"] for row in rows if row["group"] in ("photos", "documents")}
    images = {path: decode(data / path).flattened for path in sorted(benign)}
    held_out = [path for path in images if int(hashlib.sha256(path.encode()).hexdigest(), 16) % 3 == 0]
    samples = [Sample(images[path], "benign", path) for path in held_out]
    weapons = [decode(data / row["path"]).flattened for row in rows if row["group"] == "weapons"]
    samples += [Sample(weapon, "whole") for weapon in weapons]
    photos = sorted((p for p in held_out if "photos" in p), key=lambda path: -busyness(images[path]))
    rng = random.Random(0)
    busy = photos[: len(photos) // 2]
    for index, path in enumerate(busy):
        for turn in range(PASTES_PER_PHOTO):
            weapon = weapons[(index * PASTES_PER_PHOTO + turn) % len(weapons)]
            for fraction in FRACTIONS:
                image, box = paste(images[path], weapon, fraction, rng)
                samples.append(Sample(image, f"{fraction:.0%}", path, box))
    return [images[path] for path in images if path not in set(held_out)], samples


def busyness(image: Image.Image) -> float:
    """Mean absolute difference of neighbouring grey values at 256 pixels."""
    grey = np.asarray(image.convert("L").resize((256, 256)), dtype=np.float32)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def paste(
    background: Image.Image, item: Image.Image, fraction: float, rng: random.Random
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """``item`` on ``background`` at a random place, its aspect kept, over ``fraction`` of the area."""
    width, height = background.size
    scale = (fraction * width * height / (item.width * item.height)) ** 0.5
    size = min(width, round(item.width * scale)), min(height, round(item.height * scale))
    left, top = rng.randint(0, width - size[0]), rng.randint(0, height - size[1])
    image = background.copy()
    image.paste(item.resize(size, Image.Resampling.BICUBIC), (left, top))
    return image, (left, top, left + size[0], top + size[1])


def measure(
    detectors: dict[str, Detector],
    reference: Sequence[Image.Image],
    samples: Sequence[Sample],
    *,
    with_tiles: bool,
) -> dict[str, Result]:
    """Score everything under settings that cut images the same way; each image is encoded once for all."""
    results = {name: Result() for name in detectors}
    encoder, config = (first := next(iter(detectors.values()))).encoder, first.regions
    first.detect([samples[0].image])
    for image in reference:
        (regions,) = cut(encoder, [image], config)
        for name, detector in detectors.items():
            score_map = detector.scorer.score(regions, detector.bank, encoder.logit_scale)
            results[name].reference.append(float(score_map.image_scores.max()))
        tiles = cut(encoder, reference_tiles(image), config) if with_tiles else []
        for name, detector in detectors.items() if with_tiles else ():
            maps = [detector.scorer.score(regions, detector.bank, encoder.logit_scale) for regions in tiles]
            scores = [float(score_map.image_scores.max()) for score_map in maps]
            results[name].tiled.append(max(*scores, results[name].reference[-1]))
    for sample in samples:
        started = time.perf_counter()
        (regions,) = cut(encoder, [sample.image], config)
        encode_ms = (time.perf_counter() - started) * 1e3
        for name, detector in detectors.items():
            result = results[name]
            started = time.perf_counter()
            score_map = detector.scorer.score(regions, detector.bank, encoder.logit_scale)
            result.score_ms.append((time.perf_counter() - started) * 1e3)
            result.encode_ms.append(encode_ms)
            result.scores.setdefault(sample.kind, []).append(float(score_map.image_scores.max()))
            if sample.box:
                result.hits.setdefault(sample.kind, []).append(is_hit(score_map, sample))
            elif sample.kind == "benign":
                result.scores[sample.background] = result.scores["benign"][-1:]
    for result in results.values():
        backgrounds = {sample.background for sample in samples if sample.box}
        result.scores["clean"] = [result.scores[path][0] for path in sorted(backgrounds)]
    return results


def is_hit(score_map: ScoreMap, sample: Sample) -> bool:
    """Whether the centre of the highest-scoring region lies inside the pasted weapon."""
    assert sample.box
    best = int(score_map.scores.amax(-1).argmax())
    left, top, right, bottom = score_map.boxes[best].tolist()
    x, y = (left + right) / 2 * sample.image.width, (top + bottom) / 2 * sample.image.height
    return sample.box[0] <= x < sample.box[2] and sample.box[1] <= y < sample.box[3]


def auroc(unsafe: Sequence[float], benign: Sequence[float]) -> float:
    """Probability that an unsafe image scores above a benign one, ties counting half."""
    high, low = np.asarray(unsafe)[:, None], np.asarray(benign)[None, :]
    return float(((high > low) + 0.5 * (high == low)).mean())


_HEADER = (
    "| setting | whole | 25 % | 10 % | 5 % | centre inside 25 / 10 / 5 % | encode ms | score ms |\n"
    "|---|---|---|---|---|---|---|---|"
)


def row(name: str, result: Result) -> str:
    """One line of the table."""
    kinds = [f"{fraction:.0%}" for fraction in FRACTIONS]
    areas = [auroc(result.scores["whole"], result.scores["benign"])]
    areas += [auroc(result.scores[kind], result.scores["clean"]) for kind in kinds]
    hits = " / ".join(f"{np.mean(result.hits[kind]):.0%}" for kind in kinds)
    cells = [name, *(f"{area:.3f}" for area in areas), hits]
    return f"| {' | '.join(cells)} | {np.median(result.encode_ms):.0f} | {np.median(result.score_ms):.1f} |"


def print_rates(profile: Profile, result: Result) -> None:
    """Measured false-positive rates on the benign images that are not in the reference, with recall."""
    for rate in (0.05, 0.02, 0.01):
        acted = sum(profile.p_value(score) <= rate for score in result.scores["benign"])
        total = len(result.scores["benign"])
        low, high = binomtest(acted, total).proportion_ci()
        recall = " / ".join(
            f"{np.mean([profile.p_value(score) <= rate for score in result.scores[kind]]):.0%}"
            for kind in ("whole", *(f"{fraction:.0%}" for fraction in FRACTIONS))
        )
        print(f"    at {rate:.0%}: {acted} of {total} benign [{low:.1%}, {high:.1%}]; recall whole / pasted {recall}")


def print_masks(guard: Guard, samples: Sequence[Sample]) -> None:
    """What the guard's masks cover, and what becomes of every image."""
    covered, wrong = [], []
    actions: dict[str, dict[str, int]] = {}
    for sample in samples:
        verdict = guard.check(sample.image).verdict
        counts = actions.setdefault(sample.kind, {})
        counts[verdict.action] = counts.get(verdict.action, 0) + 1
        if sample.kind == f"{FRACTIONS[0]:.0%}" and sample.box:
            inside, outside = mask_shares(sample, verdict.masks)
            covered.append(inside)
            wrong.append(outside)
    print(
        f"\nMasks at {FRACTIONS[0]:.0%}: {np.mean(covered):.0%} of the weapon covered, {np.mean(wrong):.0%} of the rest"
    )
    found = [(inside, outside) for inside, outside in zip(covered, wrong, strict=True) if inside + outside > 0]
    print(
        f"    in the {len(found)} of {len(covered)} that were masked: "
        + " and ".join(f"{x:.0%}" for x in np.mean(found, 0))
    )
    for kind, counts in actions.items():
        print(f"    {kind}: " + ", ".join(f"{action} {count}" for action, count in sorted(counts.items())))


def mask_shares(sample: Sample, masks: Sequence[tuple[float, float, float, float]]) -> tuple[float, float]:
    """Share of the pasted weapon under the masks, and of everything else."""
    assert sample.box
    mask = np.zeros((sample.image.height, sample.image.width), dtype=bool)
    weapon = np.zeros_like(mask)
    for target, boxes in ((mask, masks), (weapon, [sample.box])):
        for left, top, right, bottom in boxes:
            target[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
    return float(mask[weapon].mean()), float(mask[~weapon].mean())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with images.jsonl")
    parser.add_argument("--encoder", default="offline")
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--only", nargs="*", help="settings to run, by name")
    parser.add_argument("--masks-only", action="store_true", help="only what masks cover, with the profile in use")
    parser.add_argument("--write-profiles", type=Path, help="folder to write the default settings' profiles to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
