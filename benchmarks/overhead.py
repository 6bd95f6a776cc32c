"""What everything after the encoder costs, as a share of the encoder's forward pass.

    python benchmarks/overhead.py [--rounds 20]

A ViT-B/32 (random weights, which cost what trained ones do) encodes 17 regions of an image; weights, costs, Sinkhorn,
scores, boxes and mask follow, for 10 categories of 8 anchors and 80 benign ones. Both are timed in turn in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from PIL import Image

from guardalign_guardrails.detection.detector import Detector
from guardalign_guardrails.detection.encoders import OpenClipEncoder
from guardalign_guardrails.detection.extent import unsafe_boxes
from guardalign_guardrails.detection.regions import cut
from guardalign_guardrails.detection.scoring import score
from guardalign_guardrails.detection.transport import sinkhorn
from guardalign_guardrails.images import mask_regions
from guardalign_guardrails.policy import Anchors, Category, Policy
from guardalign_guardrails.policy.detection import RegionConfig, Scoring, ScoringConfig


class CountingEncoder(OpenClipEncoder):
    """Counts how many texts were encoded."""

    texts = 0

    def encode_texts(self, texts: list[str]) -> torch.Tensor:  # type: ignore[override]
        """Encode and count."""
        self.texts += len(texts)
        return super().encode_texts(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    import open_clip

    torch.manual_seed(0)
    model, _, _ = open_clip.create_model_and_transforms("ViT-B-32", pretrained=None)
    encoder = CountingEncoder.from_modules(
        model.eval(),
        open_clip.get_tokenizer("ViT-B-32"),
        mean=(0.481, 0.458, 0.408),
        std=(0.269, 0.261, 0.276),
        size=(224, 224),
        name="ViT-B-32 (random)",
    )
    categories = {f"c{i}": Category(concepts=tuple(f"thing {i} {j}" for j in range(8))) for i in range(10)}
    benign = Anchors(concepts=tuple(f"harmless {j}" for j in range(80)))
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (768, 1024, 3), dtype=np.uint8))
    print(f"{torch.get_num_threads()} threads, {rounds} rounds, medians")
    print("| scoring | regions | encode ms | after ms | ratio |\n|---|---|---|---|---|")
    methods: tuple[Scoring, ...] = ("joint", "conditional", "paper")
    for index, method in enumerate(methods, start=1):
        policy = Policy(
            templates=("{}",),
            categories=categories,
            benign=benign,
            regions=RegionConfig(method="grid", scales=(1, 4)),
            scoring=ScoringConfig(method=method),
        )
        detector = Detector(policy, encoder)
        anchors = len(detector.bank.texts)
        encode, after, ratios = [], [], []
        for turn in range(rounds + 1):
            started = time.perf_counter()
            (regions,) = cut(encoder, [image], detector.regions)
            encoded = time.perf_counter()
            score_map = score(regions, detector.bank, policy.scoring, encoder.logit_scale)
            level = float(score_map.image_scores.max())
            boxes = unsafe_boxes(score_map, [level] * 10, 0.5)
            width, height = image.size
            mask_regions(image, [(b[0] * width, b[1] * height, b[2] * width, b[3] * height) for b in boxes])
            done = time.perf_counter()
            if turn:
                encode.append((encoded - started) * 1e3)
                after.append((done - encoded) * 1e3)
                ratios.append(after[-1] / encode[-1])
        assert encoder.texts == index * anchors, "anchors must be encoded once"
        print(
            f"| {method} | {len(regions.features)} | {statistics.median(encode):.0f} | {statistics.median(after):.1f} "
            f"| {statistics.median(ratios):.1%} |"
        )
    print_solvers(rounds)


def print_solvers(rounds: int) -> None:
    """Our Sinkhorn beside POT's batched one, on balanced problems of the shape of "conditional", same stop."""
    import ot

    generator = torch.Generator().manual_seed(0)
    print("\n| problems x regions x anchors | ours ms | POT batch ms | largest difference |\n|---|---|---|---|")
    for problems, rows, columns in ((10, 17, 8), (10, 500, 20), (160, 17, 8)):
        cost = 0.6 + 0.3 * torch.rand(problems, rows, columns, generator=generator)
        a, b = torch.full((problems, rows), 1 / rows), torch.full((problems, columns), 1 / columns)
        ours, theirs = [], []
        for turn in range(rounds + 1):
            started = time.perf_counter()
            plan = sinkhorn(cost, a, b, epsilon=0.1, max_iterations=100, tolerance=1e-5)
            middle = time.perf_counter()
            result = ot.batch.solve_batch(cost, reg=0.1, a=a, b=b, max_iter=100, tol=1e-5, method="log_sinkhorn")
            if turn:
                ours.append((middle - started) * 1e3)
                theirs.append((time.perf_counter() - middle) * 1e3)
        apart = float((plan - result.plan).abs().max())
        shape = f"{problems} x {rows} x {columns}"
        print(f"| {shape} | {statistics.median(ours):.2f} | {statistics.median(theirs):.2f} | {apart:.1e} |")


if __name__ == "__main__":
    main()
